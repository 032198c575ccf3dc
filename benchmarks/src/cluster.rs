//! A circle with three real control replicas on this machine: `quorate control run`, founded for a benchmark.

pub(crate) mod load;
pub(crate) mod nodes;
pub(crate) mod services;
pub(crate) mod workers;

use crate::process::{ChildGuard, free_ports};
use crate::report::directory;
use anyhow::{Context as _, Result, ensure};
use control::client::ControlClient;
use control::context::Context;
use control::grant::{GrantTerms, unsigned_grant};
use control::member_key::{MemberKey, MemberKeyFile};
use control::policy::simple_policy;
use control::server::create_replica;
use host::random::fresh_secret_text;
use host::{files, wall_clock};
use protocol::ReplicaId;
use protocol::access::{AccessEnvelope, GRANT_SECONDS_MAX, GrantedAccess, SignedGrant};
use protocol::api::ReplicaView;
use protocol::governance::{ControlReplica, Genesis, Member, NodeAdmission, SignedGenesis, TokenScope};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Number of control replicas.
pub(crate) const REPLICAS: usize = 3;
/// Directory of the node through which models are imported.
pub(crate) const NODE: &str = "node-1";
/// Time for the replicas to elect a leader.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Variable by which a child process learns that it ends with this one.
const WITH_PARENT: &str = "QUORATE_WITH_PARENT";

/// A running circle.
pub(crate) struct ControlCluster {
    pub(crate) directory: PathBuf,
    pub(crate) members: Vec<MemberKey>,
    pub(crate) genesis: SignedGenesis,
    pub(crate) context: Context,
    program: PathBuf,
    replicas: Vec<ControlProcess>,
}

struct ControlProcess {
    id: ReplicaId,
    /// Port at which agents and other replicas reach it.
    advertised: u16,
    /// Port on which it listens for them.
    overlay: u16,
    api: u16,
    /// None while the replica is dead.
    child: Option<ChildGuard>,
}

/// Writes the circle's first access token to its file, and returns its grant by this member.
fn first_token(context: &Context, issuer: &MemberKeyFile) -> Result<SignedGrant> {
    let token = fresh_secret_text("quorate-token");
    files::write_secret(&context.token_file, token.as_bytes())?;
    let terms = GrantTerms {
        circle: context.circle,
        envelope: context.circle.0,
        holder: "benchmark".parse().map_err(anyhow::Error::msg)?,
        access: GrantedAccess::Token {
            scopes: [TokenScope::Read, TokenScope::Propose, TokenScope::Submit].into(),
        },
        valid_seconds: GRANT_SECONDS_MAX,
    };
    let grant = unsigned_grant(terms, &issuer.member, &issuer.secret, &token, wall_clock());
    Ok(human_chain::sign_grant(&issuer.secret, grant))
}

/// Empties and returns the directory of a benchmark.
pub(crate) fn fresh_directory(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).with_context(|| format!("empty {}", path.display()))?;
    }
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

/// Returns a program that was built beside this one.
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(name);
    ensure!(program.is_file(), "`{}` is missing; `cargo xtask bench` builds it", program.display());
    Ok(program)
}

/// Starts a process that ends with this one, and writes its log to this file. Call it from the main thread.
pub(crate) fn start(program: &Path, arguments: &[&str], log: &Path) -> Result<ChildGuard> {
    let log = std::fs::File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command.args(arguments).env(WITH_PARENT, std::process::id().to_string()).env("RUST_LOG", "warn");
    ChildGuard::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))
}

impl ControlCluster {
    /// Founds a circle of this many members, `required` of whom decide, with these nodes, and starts its
    /// replicas.
    pub(crate) async fn found(
        directory: PathBuf,
        rule: (u32, u32),
        nodes: Vec<NodeAdmission>,
    ) -> Result<Self> {
        let ports = free_ports(REPLICAS)?;
        Self::found_at(directory, rule, nodes, &ports, &ports).await
    }

    /// Founds the same circle with replicas that listen on the second ports, and are reached at the first.
    pub(crate) async fn found_at(
        directory: PathBuf,
        (required, members): (u32, u32),
        nodes: Vec<NodeAdmission>,
        advertised: &[u16],
        overlay: &[u16],
    ) -> Result<Self> {
        let names = (0..members).map(|number| format!("member-{number:02}"));
        let person = |name: String| -> Result<MemberKeyFile> {
            Ok(MemberKeyFile::generate(name.parse().map_err(anyhow::Error::msg)?))
        };
        let people: Vec<MemberKeyFile> = names.map(person).collect::<Result<_>>()?;
        let entry = |file: &MemberKeyFile| Member { id: file.member.clone(), keys: file.secret.public() };
        let entries: Vec<Member> = people.iter().map(entry).collect();
        let api = free_ports(REPLICAS)?;
        let process = |index: usize| ControlProcess {
            id: ReplicaId(index as u64 + 1),
            advertised: advertised[index],
            overlay: overlay[index],
            api: api[index],
            child: None,
        };
        let replicas: Vec<ControlProcess> = (0..REPLICAS).map(process).collect();
        let genesis = Genesis {
            name: "benchmark".into(),
            founded_at: wall_clock(),
            policy: simple_policy(&entries, required),
            access: AccessEnvelope::standard(entries.iter().map(|entry| entry.id.clone())),
            members: entries,
            control: replicas.iter().map(|replica| replica.entry(&directory)).collect::<Result<_>>()?,
            nodes,
        };
        let founders: Vec<_> = people.iter().map(|file| (file.member.clone(), &file.secret)).collect();
        let genesis = human_chain::sign_genesis(genesis, &founders);
        files::write_atomically(&directory.join("genesis.json"), &serde_json::to_vec(&genesis)?, 0o644)?;
        people[0].save(&directory.join("member.key"))?;
        let context = Context {
            name: "benchmark".into(),
            circle: human_chain::circle_id(&genesis.genesis),
            control: genesis.genesis.control.iter().map(|replica| replica.api.clone()).collect(),
            gateway: None,
            token_file: directory.join("token"),
            member_key_file: Some(directory.join("member.key")),
            node_directory: Some(directory.join(NODE)),
            certificate_authority_file: None,
            file: directory.join("context.json"),
        };
        files::write_atomically(&context.file, &serde_json::to_vec(&context)?, 0o644)?;
        let token = first_token(&context, &people[0])?;
        let program = built("quorate")?;
        let mut cluster = Self {
            directory,
            members: people.into_iter().map(MemberKey::from).collect(),
            genesis,
            context,
            program,
            replicas,
        };
        (0..cluster.replicas.len()).try_for_each(|index| cluster.start_replica(index))?;
        cluster.hand_in(&token).await?;
        cluster.leader().await?;
        Ok(cluster)
    }

    /// Hands in the grant of the circle's first access token, once a replica leads.
    async fn hand_in(&self, grant: &SignedGrant) -> Result<()> {
        let (client, deadline) = (self.context.client()?, Instant::now() + START_LIMIT);
        loop {
            match client.post::<_, serde_json::Value>("/v1/access/grants", grant).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error).context("grant a token"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn start_replica(&mut self, index: usize) -> Result<()> {
        let genesis = self.directory.join("genesis.json").display().to_string();
        let replica = &mut self.replicas[index];
        let name = replica.name();
        let directory = self.directory.join(&name).display().to_string();
        let (overlay, api) = (format!("127.0.0.1:{}", replica.overlay), format!("127.0.0.1:{}", replica.api));
        let arguments = ["control", "run", "--dir", &directory, "--genesis", &genesis];
        let listeners = ["--overlay", &overlay, "--api", &api];
        let log = self.directory.join(format!("{name}.log"));
        replica.child = Some(start(&self.program, &[&arguments[..], &listeners].concat(), &log)?);
        Ok(())
    }

    /// Starts the replicas that are dead, and waits until each knows a leader.
    pub(crate) async fn restart_dead(&mut self) -> Result<()> {
        for index in 0..self.replicas.len() {
            if self.replicas[index].child.is_none() {
                self.start_replica(index)?;
            }
        }
        self.leader().await.map(drop)
    }

    /// Kills the leader with SIGKILL.
    pub(crate) async fn kill_leader(&mut self) -> Result<()> {
        let leader = self.leader().await?;
        let replica = self.replicas.iter_mut().find(|replica| replica.id == leader);
        // The guard kills it, and waits for its end.
        drop(replica.context("the leader is a replica")?.child.take());
        Ok(())
    }

    /// Kills every replica with SIGKILL.
    pub(crate) fn kill_all(&mut self) {
        self.replicas.iter_mut().for_each(|replica| drop(replica.child.take()));
    }

    /// Waits until all living replicas name the same leader, and returns it.
    async fn leader(&self) -> Result<ReplicaId> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let living: Vec<bool> = self.replicas.iter().map(|replica| replica.child.is_some()).collect();
            let clients = self.client()?.each();
            let mut named = Vec::new();
            for ((_, client), _) in clients.iter().zip(&living).filter(|(_, lives)| **lives) {
                named.push(client.get::<ReplicaView>("/v1/replica").await.ok().and_then(|view| view.leader));
            }
            let first = named.first().copied().flatten();
            if let Some(leader) = first.filter(|_| named.iter().all(|other| *other == first)) {
                return Ok(leader);
            }
            ensure!(Instant::now() < deadline, "no leader: {}", self.directory.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns a client of the replicas.
    pub(crate) fn client(&self) -> Result<ControlClient> {
        self.context.client()
    }

    /// Runs a command of `quorate` with this circle's context; returns what it printed.
    pub(crate) fn quorate(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        let output = command.args(arguments).env("QUORATE_CONTEXT", &self.context.file).output()?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "quorate {}: {problem}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl ControlProcess {
    fn name(&self) -> String {
        format!("control-{}", self.id.0)
    }

    fn entry(&self, directory: &Path) -> Result<ControlReplica> {
        Ok(ControlReplica {
            id: self.id,
            key: create_replica(&directory.join(self.name()))?.public_key(),
            address: format!("127.0.0.1:{}", self.advertised),
            api: format!("http://127.0.0.1:{}", self.api),
        })
    }
}
