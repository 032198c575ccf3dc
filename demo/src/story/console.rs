//! Step: a member's vote through the pages of `quorate console`. A person would type the words in a browser;
//! this program sends the same forms.

use super::{Demonstration, PrintedProposal};
use anyhow::{Context as _, Result, bail};
use reqwest::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use reqwest::{Client, Response, StatusCode, redirect};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout};

/// Beginning of the line in which the command prints its one-time link.
const LINK: &str = "open ";
/// Path in that link, before the code.
const ENTER: &str = "/console/enter?code=";
/// Time for the command to verify the history and to print its link, and for each page.
const LIMIT: Duration = Duration::from_secs(60);

/// A signed-in browser's part of a console, and the command that serves it.
struct ConsoleSession {
    http: Client,
    base: String,
    cookie: String,
    /// The command ends with this value.
    _command: Child,
}

/// Votes for a proposal as a member, through the member's own console.
pub(super) async fn approve(
    demonstration: &Demonstration,
    proposal: &PrintedProposal,
    member: &str,
) -> Result<PrintedProposal> {
    let console = ConsoleSession::open(demonstration, member).await?;
    let path = format!("/console/proposals/{}", proposal.id);
    let page = console.read(&path).await?;
    if !proposal.words.iter().all(|word| page.contains(&format!("<li>{word}</li>"))) {
        bail!("the console shows other words than the command line: {}", proposal.words.join(" "));
    }
    let words: Vec<&str> = proposal.words.iter().take(2).map(String::as_str).collect();
    let form = format!("words={}&choice=approve&reason=read+in+the+console", words.join("+"));
    let answer = console.post(&format!("{path}/vote"), form).await?;
    if answer.status() != StatusCode::SEE_OTHER {
        bail!("the console took no vote: {} {}", answer.status(), answer.text().await.unwrap_or_default());
    }
    demonstration
        .say(format!("{member} votes at {}{path} (this program sends the page's form)", console.base));
    demonstration.quorate.json(&["review", &proposal.id.to_string()]).await
}

impl ConsoleSession {
    async fn open(demonstration: &Demonstration, member: &str) -> Result<Self> {
        let key = demonstration.key_file(member);
        let mut command =
            demonstration.quorate.command_in_context(&["console", "--port", "0", "--key", &key]);
        let mut child = command.stdout(Stdio::piped()).spawn().context("start `quorate console`")?;
        let stdout = child.stdout.take().context("`quorate console` has an output")?;
        let link = tokio::time::timeout(LIMIT, read_link(stdout)).await.context("wait for the console")??;
        let (base, code) = link.split_once(ENTER).context("the link has a code")?;
        let http = Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(LIMIT).build()?;
        let (base, cookie) = (base.to_string(), String::new());
        let mut session = Self { http, base, cookie, _command: child };
        let answer = session.post("/console/enter", format!("code={code}")).await?;
        let cookie = answer.headers().get(SET_COOKIE).context("the console signs in by a cookie")?;
        session.cookie = cookie.to_str()?.split(';').next().unwrap_or_default().to_string();
        Ok(session)
    }

    async fn read(&self, path: &str) -> Result<String> {
        let request = self.http.get(format!("{}{path}", self.base)).header(COOKIE, &self.cookie);
        let answer = request.send().await.context("reach the console")?;
        if !answer.status().is_success() {
            bail!("{path} answers {}", answer.status());
        }
        Ok(answer.text().await?)
    }

    /// Sends a form as a browser does from a page of the console.
    async fn post(&self, path: &str, form: String) -> Result<Response> {
        let request = self
            .http
            .post(format!("{}{path}", self.base))
            .header(COOKIE, &self.cookie)
            .header("sec-fetch-site", "same-origin")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        request.send().await.context("reach the console")
    }
}

/// Reads the one-time link from the output of the command.
async fn read_link(stdout: ChildStdout) -> Result<String> {
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(link) = line.strip_prefix(LINK) {
            return Ok(link.to_string());
        }
    }
    bail!("`quorate console` ended without a link")
}
