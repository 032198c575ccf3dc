//! Profiles of foreign programs: the checks before anything is built, and the files of `/etc`.
//!
//! The checks state what an init relies on. They run in the launcher, so that a mistake is an error with a
//! field's name instead of a failed system call.

use crate::error::SandboxError;
use crate::ids::WORKER_ID;
use crate::time_zone;
use protocol::ServiceName;
use protocol::keys::ByteString;
use protocol::sandbox::{
    DiskArea, EtcFiles, GANG_ADDRESSES_MAX, GANG_MTU_MAX, GANG_MTU_MIN, GangDevice, INPUTS_MAX,
    LOCAL_RANKS_MAX, ProcessProfile, RankProgram, WritableAreas,
};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Component, Path};

/// Smallest writable area in bytes: a page. A memory file system of 0 bytes has no bound at all.
const AREA_BYTES_MIN: u64 = 4096;
/// Name of the ranks' user and group.
const RANK_USER: &str = "job";
/// Directories that the sandbox provides; neither the artifact nor an input appears there.
pub(crate) const PROVIDED: [&str; 8] =
    ["checkpoint", "dev", "etc", "outputs", "proc", "scratch", "sys", "tmp"];
/// Search path of a rank whose environment has none, as in common images.
const DEFAULT_SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Address of a gang device with the length of its network's prefix in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GangAddress {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl GangAddress {
    /// Parses for example `10.77.0.1/24`; none if it is malformed, or not the address of one machine.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let parsed = Self { address: address.parse().ok()?, prefix: prefix.parse().ok()? };
        let (fits, unicast) = match parsed.address {
            IpAddr::V4(v4) => (parsed.prefix <= 32, !v4.is_link_local() && !v4.is_broadcast()),
            IpAddr::V6(v6) => {
                (parsed.prefix <= 128, !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none())
            }
        };
        let address = parsed.address;
        let usable =
            unicast && !address.is_loopback() && !address.is_multicast() && !address.is_unspecified();
        (fits && parsed.prefix > 0 && usable).then_some(parsed)
    }
}

/// Returns the writable areas on disk with their paths inside, in the order of their project ids.
pub(crate) fn disk_areas(areas: &WritableAreas) -> [(&'static str, &DiskArea); 3] {
    [("/scratch", &areas.scratch), ("/checkpoint", &areas.checkpoint), ("/outputs", &areas.outputs)]
}

/// Returns the bound of a single file in bytes: a page more than the largest area, so that a file that fills
/// its area meets the area's error and not the signal of this limit.
pub(crate) fn file_bytes_max(areas: &WritableAreas) -> u64 {
    let disk = disk_areas(areas).map(|(_, area)| area.bytes_max);
    let all = disk.into_iter().chain([areas.tmp_bytes, areas.shared_memory_bytes]);
    all.max().unwrap_or(0).saturating_add(AREA_BYTES_MIN)
}

/// Returns the number of files that an area of this size may hold: one per page, within bounds.
pub(crate) fn files_max(bytes: u64) -> u64 {
    (bytes / AREA_BYTES_MIN).clamp(64, 1 << 20)
}

/// Returns the paths at which a command may be, in the order of the search: the command itself if it has a
/// slash, else one for each directory of `PATH`.
pub(crate) fn command_paths(rank: &RankProgram) -> Vec<String> {
    let command = rank.arguments.first().map(String::as_str).unwrap_or_default();
    if command.contains('/') {
        return vec![command.to_string()];
    }
    let search = rank.environment.get("PATH").map_or(DEFAULT_SEARCH, String::as_str);
    let absolute = search.split(':').filter(|directory| directory.starts_with('/'));
    absolute.map(|directory| format!("{}/{command}", directory.trim_end_matches('/'))).collect()
}

/// Returns the files of `/etc` for ranks that reach each other by these host names. There is no resolver: the
/// network inside has no name server.
///
/// # Errors
/// [`SandboxError::Profile`] for a name that is not a host name.
pub fn etc_files(hosts: &[(IpAddr, String)], localtime: Vec<u8>) -> Result<EtcFiles, SandboxError> {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    for (address, name) in hosts {
        check_host_name(name).map_err(|detail| SandboxError::Profile { detail })?;
        writeln!(text, "{address} {name}").expect("a string takes every text");
    }
    Ok(EtcFiles {
        passwd: format!(
            "root:x:0:0:root:/:/sbin/nologin\n\
             {RANK_USER}:x:{WORKER_ID}:{WORKER_ID}:{RANK_USER}:/tmp:/bin/sh\n"
        ),
        group: format!("root:x:0:\n{RANK_USER}:x:{WORKER_ID}:\n"),
        hosts: text,
        resolv_conf: "# The ranks of a gang reach each other by /etc/hosts, and nothing else.\n".into(),
        localtime: ByteString(localtime),
    })
}

/// Checks a profile.
pub(crate) fn check(profile: &ProcessProfile) -> Result<(), SandboxError> {
    check_parts(profile).map_err(|detail| SandboxError::Profile { detail })
}

fn check_parts(profile: &ProcessProfile) -> Result<(), String> {
    check_path("root", &profile.root)?;
    check_path("working_directory", &profile.working_directory)?;
    check_host_name(&profile.host_name)?;
    let resolves = |line: &str| line.split_whitespace().skip(1).any(|name| name == profile.host_name);
    if !profile.etc.hosts.lines().any(resolves) {
        return Err(format!("etc.hosts does not resolve the host name `{}`", profile.host_name));
    }
    time_zone::check(&profile.etc.localtime.0).map_err(|detail| format!("etc.localtime: {detail}"))?;
    if !(1..=LOCAL_RANKS_MAX).contains(&profile.ranks.len()) {
        return Err(format!("{} ranks; a sandbox has 1 to {LOCAL_RANKS_MAX}", profile.ranks.len()));
    }
    profile.ranks.iter().enumerate().try_for_each(|(at, rank)| check_rank(at, rank))?;
    check_inputs(profile)?;
    check_areas(&profile.areas)?;
    profile.network.as_ref().map_or(Ok(()), check_network)
}

fn check_path(field: &str, path: &str) -> Result<(), String> {
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let valid = Path::new(path).is_absolute() && Path::new(path).components().all(plain);
    if valid && !path.contains('\0') {
        Ok(())
    } else {
        Err(format!("{field}: `{}` is not an absolute path without `..`", path.escape_debug()))
    }
}

fn check_host_name(name: &str) -> Result<(), String> {
    match name.parse::<ServiceName>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("`{}` is not a host name", name.escape_debug())),
    }
}

fn check_rank(at: usize, rank: &RankProgram) -> Result<(), String> {
    let command = rank.arguments.first().map(String::as_str).unwrap_or_default();
    if command.is_empty() {
        return Err(format!("rank {at} has no command"));
    }
    let names = rank.environment.keys();
    if let Some(name) = names.into_iter().find(|name| name.is_empty() || name.contains('=')) {
        return Err(format!("rank {at}: `{}` is not the name of a variable", name.escape_debug()));
    }
    let texts = rank.environment.iter().flat_map(|(name, value)| [name, value]);
    if rank.arguments.iter().chain(texts).any(|text| text.contains('\0')) {
        return Err(format!("rank {at}: an argument or variable has a zero byte"));
    }
    Ok(())
}

fn check_inputs(profile: &ProcessProfile) -> Result<(), String> {
    if profile.inputs.len() > INPUTS_MAX {
        return Err(format!("{} inputs; at most {INPUTS_MAX}", profile.inputs.len()));
    }
    for (at, input) in profile.inputs.iter().enumerate() {
        check_path(&format!("input {at}: source"), &input.source)?;
        check_path(&format!("input {at}: path"), &input.path)?;
        let first = first_component(&input.path).unwrap_or_default();
        if first.is_empty() || PROVIDED.contains(&first) {
            return Err(format!("input {at}: `{}` belongs to the sandbox", input.path));
        }
        let nested = |other: &protocol::sandbox::InputMount| {
            Path::new(&input.path).starts_with(&other.path) || Path::new(&other.path).starts_with(&input.path)
        };
        if profile.inputs[..at].iter().any(nested) {
            return Err(format!("input {at}: `{}` overlaps with an earlier input", input.path));
        }
    }
    Ok(())
}

/// Returns the first component of an absolute path.
pub(crate) fn first_component(path: &str) -> Option<&str> {
    path.strip_prefix('/')?.split('/').find(|part| !part.is_empty() && *part != ".")
}

fn check_areas(areas: &WritableAreas) -> Result<(), String> {
    let disk = disk_areas(areas);
    let sizes = disk.map(|(path, area)| (path, area.bytes_max));
    let memory = [("/tmp", areas.tmp_bytes), ("/dev/shm", areas.shared_memory_bytes)];
    if let Some((path, bytes)) = sizes.into_iter().chain(memory).find(|(_, bytes)| *bytes < AREA_BYTES_MIN) {
        return Err(format!("{path} has {bytes} bytes; at least {AREA_BYTES_MIN}"));
    }
    let directories = || disk.iter().filter_map(|(_, area)| area.directory.as_deref());
    directories().try_for_each(|directory| check_path("a writable area's directory", directory))?;
    let distinct: std::collections::BTreeSet<&str> = directories().collect();
    if distinct.len() < directories().count() {
        return Err("two writable areas have the same directory".into());
    }
    Ok(())
}

fn check_network(device: &GangDevice) -> Result<(), String> {
    if !(1..=GANG_ADDRESSES_MAX).contains(&device.addresses.len()) {
        return Err(format!(
            "{} addresses; a gang device has one of each IP version",
            device.addresses.len()
        ));
    }
    if !(GANG_MTU_MIN..=GANG_MTU_MAX).contains(&device.mtu) {
        return Err(format!("an MTU of {}; {GANG_MTU_MIN} to {GANG_MTU_MAX}", device.mtu));
    }
    let mut versions = [false; 2];
    for text in &device.addresses {
        let Some(parsed) = GangAddress::parse(text) else {
            let text = text.escape_debug();
            return Err(format!("`{text}` is not a unicast address with a prefix, like 10.77.0.1/24"));
        };
        let version = &mut versions[usize::from(parsed.address.is_ipv6())];
        if std::mem::replace(version, true) {
            return Err("two addresses of the same IP version".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::error_code;
    use protocol::sandbox::InputMount;
    use std::collections::BTreeMap;

    fn profile() -> ProcessProfile {
        let area = || DiskArea { bytes_max: 1 << 20, directory: None };
        ProcessProfile {
            root: "/var/tree".into(),
            host_name: "rank-0".into(),
            working_directory: "/".into(),
            ranks: vec![RankProgram { arguments: vec!["true".into()], environment: BTreeMap::new() }],
            inputs: vec![],
            areas: WritableAreas {
                tmp_bytes: 1 << 20,
                shared_memory_bytes: 1 << 20,
                scratch: area(),
                checkpoint: area(),
                outputs: area(),
            },
            etc: etc_files(&[("10.77.0.1".parse().expect("address"), "rank-0".into())], vec![])
                .expect("host names"),
            network: Some(GangDevice { addresses: vec!["10.77.0.1/24".into()], mtu: 1_500 }),
        }
    }

    fn input(path: &str) -> InputMount {
        InputMount { source: "/data".into(), path: path.into() }
    }

    #[test]
    fn a_plain_profile_is_accepted() {
        check(&profile()).expect("a valid profile");
        let mut other = profile();
        other.network = None;
        other.inputs = vec![input("/data/a"), input("/data/b"), input("/driver")];
        other.etc.localtime = ByteString(b"TZif2".to_vec());
        check(&other).expect("a valid profile");
    }

    /// Each refusal names what is wrong, and has its code.
    #[test]
    #[expect(clippy::type_complexity, reason = "a table of changes")]
    fn each_field_that_is_wrong_is_named() {
        let cases: Vec<(&str, Box<dyn Fn(&mut ProcessProfile)>)> = vec![
            ("root: `tree`", Box::new(|p| p.root = "tree".into())),
            ("root: `/a/../b`", Box::new(|p| p.root = "/a/../b".into())),
            ("working_directory", Box::new(|p| p.working_directory = "here\0".into())),
            ("not a host name", Box::new(|p| p.host_name = "two words".into())),
            ("does not resolve the host name `rank-1`", Box::new(|p| p.host_name = "rank-1".into())),
            ("0 ranks", Box::new(|p| p.ranks.clear())),
            ("17 ranks", Box::new(|p| p.ranks = vec![p.ranks[0].clone(); 17])),
            ("rank 0 has no command", Box::new(|p| p.ranks[0].arguments.clear())),
            ("rank 0 has no command", Box::new(|p| p.ranks[0].arguments[0].clear())),
            ("zero byte", Box::new(|p| p.ranks[0].arguments.push("a\0b".into()))),
            (
                "not the name of a variable",
                Box::new(|p| {
                    p.ranks[0].environment.insert("A=B".into(), String::new());
                }),
            ),
            ("65 inputs", Box::new(|p| p.inputs = (0..65).map(|n| input(&format!("/d/{n}"))).collect())),
            ("belongs to the sandbox", Box::new(|p| p.inputs = vec![input("/etc/passwd")])),
            ("belongs to the sandbox", Box::new(|p| p.inputs = vec![input("/")])),
            ("belongs to the sandbox", Box::new(|p| p.inputs = vec![input("//proc/self")])),
            ("is not an absolute path", Box::new(|p| p.inputs = vec![input("/d/../etc")])),
            ("overlaps", Box::new(|p| p.inputs = vec![input("/d"), input("/d/e")])),
            ("overlaps", Box::new(|p| p.inputs = vec![input("/d/e"), input("/d")])),
            ("/tmp has 0 bytes", Box::new(|p| p.areas.tmp_bytes = 0)),
            ("/dev/shm has 1 bytes", Box::new(|p| p.areas.shared_memory_bytes = 1)),
            ("/outputs has 4095 bytes", Box::new(|p| p.areas.outputs.bytes_max = 4095)),
            ("area's directory", Box::new(|p| p.areas.scratch.directory = Some("x".into()))),
            (
                "the same directory",
                Box::new(|p| {
                    p.areas.scratch.directory = Some("/x".into());
                    p.areas.outputs.directory = Some("/x".into());
                }),
            ),
            ("TZif", Box::new(|p| p.etc.localtime = ByteString(b"#!/bin/sh".to_vec()))),
            (
                "etc.localtime: a time zone of 70000",
                Box::new(|p| p.etc.localtime = ByteString(vec![0; 70_000])),
            ),
            ("an MTU of 1279", Box::new(|p| p.network.as_mut().expect("one").mtu = 1_279)),
            ("an MTU of 65536", Box::new(|p| p.network.as_mut().expect("one").mtu = 65_536)),
            ("0 addresses", Box::new(|p| p.network.as_mut().expect("one").addresses.clear())),
            (
                "same IP version",
                Box::new(|p| {
                    p.network.as_mut().expect("one").addresses.push("10.77.0.2/24".into());
                }),
            ),
        ];
        for (expected, change) in cases {
            let mut changed = profile();
            change(&mut changed);
            let error = check(&changed).expect_err(expected);
            assert_eq!(error.code(), error_code::PROCESS_PROFILE_INVALID);
            assert!(error.to_string().contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn only_addresses_of_one_machine_are_a_ranks() {
        for text in ["10.77.0.1/24", "192.168.1.1/32", "fd00::1/64", "1.2.3.4/1"] {
            let parsed = GangAddress::parse(text).expect(text);
            assert_eq!(format!("{}/{}", parsed.address, parsed.prefix), text);
        }
        for text in [
            "169.254.169.254/32",
            "127.0.0.1/8",
            "0.0.0.0/0",
            "224.0.0.1/4",
            "255.255.255.255/32",
            "10.0.0.1",
            "10.0.0.1/33",
            "10.0.0.1/0",
            "10.0.0.1/-1",
            "10.0.0/24",
            "fe80::1/64",
            "::1/128",
            "::/64",
            "ff02::1/8",
            "fd00::1/129",
            "::ffff:10.0.0.1/128",
            "",
            "/",
        ] {
            assert_eq!(GangAddress::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_command_is_searched_in_the_absolute_directories_of_its_path() {
        let paths = |command: &str, search: Option<&str>| {
            let environment =
                search.map(|search| ("PATH".to_string(), search.to_string())).into_iter().collect();
            command_paths(&RankProgram { arguments: vec![command.into()], environment })
        };
        assert_eq!(paths("/bin/sh", Some("/usr/bin")), ["/bin/sh"]);
        assert_eq!(paths("./run", Some("/usr/bin")), ["./run"]);
        assert_eq!(paths("sh", Some("/opt/bin/:.::/bin")), ["/opt/bin/sh", "/bin/sh"]);
        assert_eq!(paths("sh", Some("")), Vec::<String>::new());
        assert_eq!(paths("sh", None).len(), 6);
        assert_eq!(paths("sh", None)[3], "/usr/bin/sh");
    }

    #[test]
    fn host_names_cannot_add_lines_to_a_file() {
        let address: IpAddr = "10.77.0.1".parse().expect("address");
        let etc = etc_files(&[(address, "rank-0".into())], vec![]).expect("a host name");
        assert!(etc.hosts.ends_with("10.77.0.1 rank-0\n") && etc.hosts.starts_with("127.0.0.1 localhost\n"));
        assert!(etc.passwd.contains("job:x:1:1:") && etc.group.contains("job:x:1:"));
        for name in ["", "a b", "a\n10.0.0.1 b", "A"] {
            assert!(etc_files(&[(address, name.into())], vec![]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_file_is_bounded_by_the_largest_area() {
        let mut areas = profile().areas;
        assert_eq!(file_bytes_max(&areas), (1 << 20) + 4096);
        areas.outputs.bytes_max = 1 << 30;
        assert_eq!(file_bytes_max(&areas), (1 << 30) + 4096);
        for (bytes, files) in [(0, 64), (1 << 20, 256), (u64::MAX, 1 << 20)] {
            assert_eq!(files_max(bytes), files, "{bytes}");
        }
    }
}
