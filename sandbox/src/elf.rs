//! Finds the files that a dynamically linked executable needs to start: its loader and its libraries, by the
//! loader's rules. A worker's root then holds these and nothing else.
//!
//! This reads ELF headers and executes nothing (`ldd` does). It supports 64-bit little-endian files, the only
//! kind that this project builds. Libraries opened later by name (`dlopen`) are not found here: a caller that
//! needs them adds them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Default search directories of loaders, most specific first.
const DIRECTORIES: [&str; 8] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
/// The loader's own table of libraries in other directories, for example `/usr/local/cuda`.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
/// Bound above the number of any worker's libraries. A cycle would end before, since each is visited once.
const LIBRARIES_MAX: usize = 256;
/// Longest path or list of paths in a dynamic section.
const TEXT_BYTES_MAX: usize = 4096;
/// Bound above the number of entries of any dynamic section.
const ENTRIES_MAX: u64 = 4096;
/// Bound above the number of program headers that any linker writes.
const SEGMENTS_MAX: u64 = 256;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// Returns the loader and every library that `binary` needs, directly or not, under the paths by which the
/// loader will open them. Includes the loader's table if one is only found there. Empty for a static
/// executable. `$ORIGIN` of the executable itself is ignored, because a worker is moved.
///
/// # Errors
/// If a file cannot be read or is no ELF file of the expected kind, or a library is not found.
pub fn libraries_of(binary: &Path) -> io::Result<Vec<PathBuf>> {
    libraries_beside(binary, &|_| false)
}

/// Returns what [`libraries_of`] does, for a file whose process has libraries that its headers do not lead
/// to: those that another file has loaded before. A library that is nowhere is left out if `is_loaded` says
/// so of its name.
///
/// # Errors
/// As [`libraries_of`].
pub fn libraries_beside(binary: &Path, is_loaded: &dyn Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    // Each file with the directories that its loaders' `DT_RPATH` names, the nearest first.
    let mut waiting: Vec<(PathBuf, Vec<PathBuf>)> = vec![(binary.to_path_buf(), Vec::new())];
    while let Some((path, inherited)) = waiting.pop() {
        let file = File::open(&path)?;
        let read = |at, buffer: &mut [u8]| file.read_at(buffer, at).ok();
        let linked = Elf(&read)
            .linked()
            .ok_or_else(|| invalid(format!("{} is not a 64-bit little-endian ELF file", path.display())))?;
        if let Some(loader) = &linked.loader {
            found.insert(loader.clone());
        }
        let search = SearchPath::of(&linked, &path, inherited);
        for name in &linked.needed {
            let library = locate(name, &search.directories).or_else(|| {
                let library = locate_in_cache(name, &fs::read(LOADER_CACHE).ok()?)?;
                found.insert(LOADER_CACHE.into());
                Some(library)
            });
            let Some(library) = library else {
                if is_loaded(name) {
                    continue;
                }
                return Err(invalid(format!(
                    "{} needs {}, which is nowhere",
                    path.display(),
                    name.display()
                )));
            };
            if found.insert(library.clone()) {
                waiting.push((library, search.inherited.clone()));
            }
            if found.len() > LIBRARIES_MAX {
                return Err(invalid(format!("{} needs too many libraries", binary.display())));
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Directories that the loader searches for what a file needs, before its defaults.
struct SearchPath {
    directories: Vec<PathBuf>,
    /// Those that it searches for the needs of these libraries too.
    inherited: Vec<PathBuf>,
}

impl SearchPath {
    /// Returns the directories by the rules of ld.so(8): `DT_RUNPATH` is the file's own and displaces every
    /// `DT_RPATH`; without it the `DT_RPATH` of the file and of those that loaded it count.
    fn of(linked: &DynamicDependencies, file: &Path, inherited: Vec<PathBuf>) -> Self {
        let origin = file.parent().unwrap_or(Path::new("/"));
        let own = linked.search.iter().map(|directory| match directory.strip_prefix("$ORIGIN") {
            Ok(rest) => origin.join(rest),
            Err(_) => directory.clone(),
        });
        if linked.is_runpath {
            return Self { directories: own.collect(), inherited };
        }
        let directories: Vec<PathBuf> = own.chain(inherited).collect();
        Self { inherited: directories.clone(), directories }
    }
}

fn locate(name: &Path, directories: &[PathBuf]) -> Option<PathBuf> {
    if name.is_absolute() {
        return name.exists().then(|| name.to_path_buf());
    }
    let defaults = DIRECTORIES.iter().map(PathBuf::from);
    let mut places = directories.iter().cloned().chain(defaults).map(|directory| directory.join(name));
    places.find(|path| path.is_file())
}

/// The table holds every path as text that ends with a zero byte, in all of its versions. Several may have
/// the name; the first that this machine can load is the match.
fn locate_in_cache(name: &Path, cache: &[u8]) -> Option<PathBuf> {
    let texts = cache.split(|byte| *byte == 0).map(|text| Path::new(OsStr::from_bytes(text)));
    let mut candidates =
        texts.filter(|path| path.is_absolute() && path.file_name() == Some(name.as_os_str()));
    let loadable = |path: &&Path| {
        File::open(path).is_ok_and(|file| {
            let read = |at, buffer: &mut [u8]| file.read_at(buffer, at).ok();
            Elf(&read).linked().is_some()
        })
    };
    candidates.find(loadable).map(Path::to_path_buf)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Dependencies named in the headers of an executable or library.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DynamicDependencies {
    pub loader: Option<PathBuf>,
    /// Names of libraries, most without a directory.
    pub needed: Vec<PathBuf>,
    /// Directories to search first.
    pub search: Vec<PathBuf>,
    /// Whether these are for what the file itself needs alone (`DT_RUNPATH`), and not for what its libraries
    /// need too (`DT_RPATH`).
    pub is_runpath: bool,
}

/// Returns the dependencies named by the bytes of an executable; none if they are no supported ELF file.
#[must_use]
pub fn linked_by(bytes: &[u8]) -> Option<DynamicDependencies> {
    let read = |at: u64, buffer: &mut [u8]| {
        let rest = bytes.get(usize::try_from(at).ok()?..)?;
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Some(length)
    };
    Elf(&read).linked()
}

/// Reads at an offset into a buffer and returns the number of bytes read.
type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> Option<usize>;

/// A 64-bit little-endian ELF file, read only where needed. Every read is checked; none panics on hostile
/// bytes.
struct Elf<'a>(Read<'a>);

struct ProgramSegment {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
}

impl Elf<'_> {
    fn linked(&self) -> Option<DynamicDependencies> {
        // Magic, class 2 = 64 bits, data 1 = little-endian.
        if self.number::<6>(0)?.to_le_bytes()[..6] != *b"\x7fELF\x02\x01" {
            return None;
        }
        let segments = self.segments()?;
        let of_kind = |kind| segments.iter().find(move |segment| segment.kind == kind);
        let mut linked = DynamicDependencies::default();
        if let Some(segment) = of_kind(PT_INTERP) {
            linked.loader = Some(self.text(segment.offset)?);
        }
        let Some(dynamic) = of_kind(PT_DYNAMIC) else { return Some(linked) };
        let entries = self.dynamic(dynamic)?;
        let Some(strings) = entries.iter().find(|(tag, _)| *tag == DT_STRTAB) else {
            return Some(linked);
        };
        // The table's address is one in memory; the segment that loads it yields the offset in the file.
        let loaded = segments.iter().find(|segment| {
            let within = strings.1.checked_sub(segment.address);
            segment.kind == PT_LOAD && within.is_some_and(|offset| offset < segment.file_bytes)
        })?;
        let table = loaded.offset.checked_add(strings.1 - loaded.address)?;
        linked.is_runpath = entries.iter().any(|(tag, _)| *tag == DT_RUNPATH);
        let searched = if linked.is_runpath { DT_RUNPATH } else { DT_RPATH };
        for (tag, value) in &entries {
            let text = || self.text(table.checked_add(*value)?);
            match *tag {
                DT_NEEDED => linked.needed.push(text()?),
                tag if tag == searched => {
                    let list = text()?;
                    let parts = list.as_os_str().as_bytes().split(|byte| *byte == b':');
                    linked.search.extend(parts.map(|part| PathBuf::from(OsStr::from_bytes(part))));
                }
                _ => {}
            }
        }
        Some(linked)
    }

    fn segments(&self) -> Option<Vec<ProgramSegment>> {
        let first = self.number::<8>(32)?;
        let size = self.number::<2>(54)?;
        let count = self.number::<2>(56)?;
        (0..count.min(SEGMENTS_MAX))
            .map(|index| {
                let at = first.checked_add(index.checked_mul(size)?)?;
                Some(ProgramSegment {
                    kind: u32::try_from(self.number::<4>(at)?).ok()?,
                    offset: self.number::<8>(at.checked_add(8)?)?,
                    address: self.number::<8>(at.checked_add(16)?)?,
                    file_bytes: self.number::<8>(at.checked_add(32)?)?,
                })
            })
            .collect()
    }

    fn dynamic(&self, segment: &ProgramSegment) -> Option<Vec<(u64, u64)>> {
        let mut entries = Vec::new();
        for index in 0..(segment.file_bytes / 16).min(ENTRIES_MAX) {
            let at = segment.offset.checked_add(index * 16)?;
            let (tag, value) = (self.number::<8>(at)?, self.number::<8>(at.checked_add(8)?)?);
            if tag == 0 {
                break;
            }
            entries.push((tag, value));
        }
        Some(entries)
    }

    fn number<const N: usize>(&self, at: u64) -> Option<u64> {
        let mut all = [0; 8];
        ((self.0)(at, &mut all[..N])? == N).then_some(u64::from_le_bytes(all))
    }

    fn text(&self, at: u64) -> Option<PathBuf> {
        let mut bytes = vec![0; TEXT_BYTES_MAX];
        let length = (self.0)(at, &mut bytes)?;
        let end = bytes[..length].iter().position(|byte| *byte == 0)?;
        Some(PathBuf::from(OsStr::from_bytes(&bytes[..end])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_running_program_needs_what_it_has_mapped() {
        let program = std::env::current_exe().expect("this test is a program");
        let found = libraries_of(&program).expect("its libraries");
        let found: BTreeSet<_> = found.iter().filter_map(|path| path.canonicalize().ok()).collect();
        let maps = fs::read_to_string("/proc/self/maps").expect("maps");
        // A preloaded library is mapped because the caller of this test requested it, even if it has taken
        // itself out of the environment since.
        let began_with = fs::read_to_string("/proc/self/environ").expect("the first environment");
        let preloaded = began_with.split('\0').find_map(|variable| variable.strip_prefix("LD_PRELOAD="));
        let preloaded: BTreeSet<_> = preloaded.unwrap_or_default().split([':', ' ']).collect();
        let needed = |path: &&str| path.contains(".so") && !preloaded.contains(*path);
        let mapped = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        for path in mapped.filter(needed) {
            assert!(found.contains(Path::new(path)), "{path} is mapped but not in {found:?}");
        }
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        let file = tempfile::NamedTempFile::new().expect("file");
        fs::write(file.path(), "#!/bin/sh\n").expect("write");
        let error = libraries_of(file.path()).expect_err("a script");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(libraries_of(Path::new("/does/not/exist")).is_err());
    }

    #[test]
    fn origin_is_where_the_needing_file_lies() {
        let directory = tempfile::tempdir().expect("directory");
        let library = directory.path().join("libown.so");
        fs::write(&library, "").expect("write");
        let linked = DynamicDependencies { search: vec!["$ORIGIN".into()], ..Default::default() };
        let search = SearchPath::of(&linked, &directory.path().join("program"), Vec::new());
        assert_eq!(locate(Path::new("libown.so"), &search.directories), Some(library));
        assert_eq!(locate(Path::new("libnowhere-0.so"), &[]), None);
    }

    /// Wheels of SciPy are linked so: a library beside others, found by the `DT_RPATH` of what loads it.
    #[test]
    fn a_library_without_a_path_is_searched_by_the_path_of_what_loads_it() {
        let of = |search: &[&str], is_runpath| DynamicDependencies {
            search: search.iter().map(PathBuf::from).collect(),
            is_runpath,
            ..Default::default()
        };
        let extension = SearchPath::of(&of(&["$ORIGIN/libs"], false), Path::new("/p/odr.so"), Vec::new());
        assert_eq!(extension.directories, [Path::new("/p/libs")]);
        let library = SearchPath::of(&of(&[], false), Path::new("/p/libs/a.so"), extension.inherited);
        assert_eq!(library.directories, [Path::new("/p/libs")]);
        let own = SearchPath::of(&of(&["/own"], false), Path::new("/p/libs/b.so"), library.inherited.clone());
        assert_eq!(own.directories, [Path::new("/own"), Path::new("/p/libs")], "its own comes first");
        let apart = SearchPath::of(&of(&["/own"], true), Path::new("/p/libs/c.so"), library.inherited);
        assert_eq!(apart.directories, [Path::new("/own")], "a run path displaces the others");
        assert_eq!(apart.inherited, [Path::new("/p/libs")], "and is for this file alone");
    }

    #[test]
    fn the_loaders_table_names_what_lies_elsewhere() {
        let program = std::env::current_exe().expect("this test is a program");
        let name = Path::new(program.file_name().expect("a file"));
        let table = [b"glibc-ld.so.cache1.1\x01\0/nowhere/", name.as_os_str().as_bytes(), b"\0"].concat();
        assert_eq!(locate_in_cache(name, &table), None, "a path that is not there");
        let table = [&table[..], program.as_os_str().as_bytes(), b"\0"].concat();
        assert_eq!(locate_in_cache(name, &table), Some(program.clone()));
        assert_eq!(locate_in_cache(Path::new("libother.so"), &table), None);
    }

    /// Returns an executable with these program headers: kind, offset, address, and length in the file.
    fn elf(segments: &[(u32, u64, u64, u64)], content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(segments.len()).expect("few").to_le_bytes());
        for (kind, offset, address, length) in segments {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&offset.to_le_bytes());
            header[16..24].copy_from_slice(&address.to_le_bytes());
            header[32..40].copy_from_slice(&length.to_le_bytes());
            bytes.extend(header);
        }
        bytes.extend(content);
        bytes
    }

    /// Offset of the content of an executable with three program headers.
    const CONTENT: u64 = 64 + 3 * 56;

    /// Returns an executable whose dynamic section has these entries, before a table of strings.
    fn dynamic(entries: &[(u64, u64)], strings: &[u8]) -> Vec<u8> {
        let table = CONTENT + 16 * entries.len() as u64;
        let content: Vec<u8> = entries
            .iter()
            .flat_map(|(tag, value)| [tag, value])
            .fold(Vec::new(), |bytes, number| [bytes, number.to_le_bytes().to_vec()].concat());
        let length = content.len() as u64;
        let segments = [
            (PT_LOAD, table, 0x1000, strings.len() as u64),
            (PT_DYNAMIC, CONTENT, 0, length),
            (PT_INTERP, table, 0, 0),
        ];
        elf(&segments, &[&content, strings].concat())
    }

    #[test]
    fn needed_libraries_and_search_paths_are_named() {
        let strings = b"/lib/ld.so\0libc.so\0$ORIGIN:/opt/lib\0";
        let entries = [(DT_NEEDED, 11), (DT_RUNPATH, 19), (DT_STRTAB, 0x1000), (0, 0), (DT_NEEDED, 0)];
        let linked = linked_by(&dynamic(&entries, strings)).expect("a supported file");
        let expected = DynamicDependencies {
            loader: Some("/lib/ld.so".into()),
            needed: vec!["libc.so".into()],
            search: vec!["$ORIGIN".into(), "/opt/lib".into()],
            is_runpath: true,
        };
        assert_eq!(linked, expected, "entries after the end do not count");
    }

    /// Wheels of SciPy hold such a library: it has no path, and is beside the one that it needs.
    #[test]
    fn a_library_that_is_nowhere_is_left_out_if_another_file_loads_it_first() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let entries = [(DT_NEEDED, 1), (DT_STRTAB, 0x1000)];
        fs::write(file.path(), dynamic(&entries, b"\0libquad-1.so\0")).expect("write");
        let error = libraries_of(file.path()).expect_err("nowhere");
        assert!(error.to_string().contains("needs libquad-1.so, which is nowhere"), "{error}");
        let is_loaded = |loaded: &'static str| move |name: &Path| name == Path::new(loaded);
        let found = libraries_beside(file.path(), &is_loaded("libquad-1.so")).expect("loaded before");
        assert!(!found.iter().any(|path| path.ends_with("libquad-1.so")), "{found:?}");
        libraries_beside(file.path(), &is_loaded("libother.so")).expect_err("another is loaded");
    }

    #[test]
    fn a_static_executable_needs_nothing() {
        assert_eq!(linked_by(&elf(&[], b"")), Some(DynamicDependencies::default()));
        assert_eq!(linked_by(&elf(&[(PT_LOAD, 0, 0, 64)], b"")), Some(DynamicDependencies::default()));
    }

    #[test]
    fn headers_that_contradict_the_file_are_refused() {
        let needed = |table| [(DT_STRTAB, table), (DT_NEEDED, 0)];
        for (name, bytes) in [
            ("a table in no segment", dynamic(&needed(0x2000), b"x\0")),
            ("a table before its segment", dynamic(&needed(0xfff), b"x\0")),
            ("a name without an end", dynamic(&needed(0x1000), b"x")),
            ("a name beyond the file", dynamic(&[(DT_STRTAB, 0x1000), (DT_NEEDED, 99)], b"x\0")),
            (
                "a name at the end of all numbers",
                dynamic(&[(DT_STRTAB, 0x1000), (DT_NEEDED, u64::MAX)], b"x\0"),
            ),
            ("a loader beyond the file", elf(&[(PT_INTERP, 1 << 40, 0, 8)], b"")),
            ("a section beyond the file", elf(&[(PT_DYNAMIC, u64::MAX - 8, 0, 32)], b"")),
            ("headers beyond the file", elf(&[(PT_LOAD, 0, 0, 0)], b"")[..100].to_vec()),
            ("32 bits", [&b"\x7fELF\x01\x01"[..], &[0; 64]].concat()),
            ("big-endian", [&b"\x7fELF\x02\x02"[..], &[0; 64]].concat()),
            ("nothing", vec![]),
        ] {
            assert_eq!(linked_by(&bytes), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_cut_or_flipped_byte_is_read_without_a_panic(
            cut in 0_usize..400, at in 0_usize..400, value in any::<u8>(),
        ) {
            let entries = [(DT_STRTAB, 0x1000), (DT_NEEDED, 0), (DT_RPATH, 2)];
            let mut bytes = dynamic(&entries, b"x\0y:z\0");
            bytes.truncate(cut);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            if let Some(linked) = linked_by(&bytes) {
                prop_assert!(linked.needed.len() <= 3 && linked.search.len() <= 12, "{linked:?}");
            }
        }

        #[test]
        fn hostile_headers_do_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 64..512)) {
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            let _ = linked_by(&bytes);
        }
    }
}
