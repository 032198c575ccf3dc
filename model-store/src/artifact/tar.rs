//! Strict reader of tar archives: ustar with the extensions of GNU and POSIX.1-2001 (pax) for long names and
//! large files.
//!
//! Every number, length and record is checked, and no more of a record is kept in memory than a name may
//! have. Sparse files, multi-volume archives and unknown entries are refused. Owners, times and extended
//! attributes are skipped.

use std::io::{self, ErrorKind, Read};

const BLOCK: usize = 512;
/// Maximum size in bytes of the extended header of one entry: extended attributes fit.
const EXTENSION_BYTES_MAX: u64 = 1024 * 1024;
/// Maximum number of extended headers of one entry: one of each kind, and one to spare.
const EXTENSIONS_MAX: usize = 4;

/// Kind of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TarKind {
    File,
    Directory,
    /// Symbolic link to this target.
    Symlink(String),
    /// Hard link to this entry.
    HardLink(String),
    /// Device or pipe, by its name in English.
    Device(&'static str),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarEntry {
    /// Path as the archive holds it.
    pub(crate) path: String,
    pub(crate) kind: TarKind,
    /// Whether any execute bit is set.
    pub(crate) executable: bool,
    /// Length of the content in bytes.
    pub(crate) length: u64,
    /// First byte of the content in the archive.
    pub(crate) offset: u64,
}

/// Values that an extended header sets for the next entry.
#[derive(Debug, Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    length: Option<u64>,
}

/// Skips bytes of an archive's input.
type Skip<R> = fn(&mut R, u64) -> io::Result<()>;

/// Reader of an archive. Between two entries, [`Read`] returns the content of the last one.
pub(crate) struct TarReader<R> {
    input: R,
    skip: Skip<R>,
    /// Bytes of the entry's content that were not read.
    left: u64,
    /// Bytes after the content, up to a full block.
    padding: u64,
    /// Bytes of the archive read.
    position: u64,
    ended: bool,
}

impl<R: Read> TarReader<R> {
    /// Starts to read an archive, and skips contents by reading them.
    pub(crate) fn new(input: R) -> Self {
        Self::with_skip(input, |input, bytes| {
            let skipped = io::copy(&mut input.take(bytes), &mut io::sink())?;
            if skipped == bytes { Ok(()) } else { Err(truncated()) }
        })
    }

    /// Starts to read an archive whose contents are skipped in this way.
    pub(crate) fn with_skip(input: R, skip: Skip<R>) -> Self {
        Self { input, skip, left: 0, padding: 0, position: 0, ended: false }
    }

    /// Returns the next entry; none at the end of the archive.
    ///
    /// # Errors
    /// `InvalidData` for a header that is no tar header, `UnexpectedEof` for a truncated archive, and errors
    /// of the input.
    pub(crate) fn next_entry(&mut self) -> io::Result<Option<TarEntry>> {
        let mut extension = Extension::default();
        for extensions in 0.. {
            let Some(header) = self.header()? else {
                return if extensions == 0 { Ok(None) } else { Err(truncated()) };
            };
            let length = header.length()?;
            match header.kind {
                b'x' | b'L' | b'K' if extensions >= EXTENSIONS_MAX => {
                    return Err(invalid("an entry has too many extended headers"));
                }
                b'x' => extension.read_pax(&self.record(length)?)?,
                b'L' => extension.path = Some(text(until_zero(&self.record(length)?))?),
                b'K' => extension.link = Some(text(until_zero(&self.record(length)?))?),
                // Values for all entries: comments of `git archive`; a path for all of them has no meaning.
                b'g' => drop(self.record(length)?),
                _ => return self.entry(&header, length, extension).map(Some),
            }
        }
        unreachable!("the loop ends with an entry or an error")
    }

    fn entry(&mut self, header: &TarHeader, length: u64, extension: Extension) -> io::Result<TarEntry> {
        let length = extension.length.unwrap_or(length);
        let path = match extension.path {
            Some(path) => path,
            None => header.path()?,
        };
        let link = match extension.link {
            Some(link) => link,
            None => text(until_zero(&header.block[157..257]))?,
        };
        let kind = match header.kind {
            // Archives older than POSIX mark a directory by its name alone.
            0 | b'0' if path.ends_with('/') => TarKind::Directory,
            0 | b'0' | b'7' => TarKind::File,
            b'1' => TarKind::HardLink(link),
            b'2' => TarKind::Symlink(link),
            b'3' => TarKind::Device("a character device"),
            b'4' => TarKind::Device("a block device"),
            b'5' => TarKind::Directory,
            b'6' => TarKind::Device("a named pipe"),
            b'S' => return Err(invalid("sparse files are not read")),
            other => {
                let other = char::from(other).escape_debug().to_string();
                return Err(invalid(&format!("entries of kind `{other}` are not known")));
            }
        };
        if kind != TarKind::File && length > 0 {
            return Err(invalid(&format!("`{}` has {length} bytes, but is no file", path.escape_debug())));
        }
        if length > i64::MAX as u64 - BLOCK as u64 {
            return Err(invalid(&format!("`{}` has {length} bytes", path.escape_debug())));
        }
        (self.left, self.padding) = (length, padding(length));
        let executable = octal(&header.block[100..108])? & 0o111 != 0;
        Ok(TarEntry { path, kind, executable, length, offset: self.position })
    }

    /// Returns the next header; none at the end of the archive, which two blocks of zeros mark.
    fn header(&mut self) -> io::Result<Option<TarHeader>> {
        if self.ended {
            return Ok(None);
        }
        let behind = self.left + self.padding;
        (self.skip)(&mut self.input, behind)?;
        self.position += behind;
        (self.left, self.padding) = (0, 0);
        let block = self.block()?;
        if block.iter().all(|byte| *byte == 0) {
            if self.block()?.iter().any(|byte| *byte != 0) {
                return Err(invalid("a block of zeros is followed by another entry"));
            }
            self.ended = true;
            return Ok(None);
        }
        TarHeader::parse(block).map(Some)
    }

    fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(ended_early)?;
        self.position += BLOCK as u64;
        Ok(block)
    }

    /// Reads the content of an extended header.
    fn record(&mut self, length: u64) -> io::Result<Vec<u8>> {
        if length > EXTENSION_BYTES_MAX {
            return Err(invalid(&format!("an extended header has {length} bytes")));
        }
        let mut bytes = vec![0; (length + padding(length)) as usize];
        self.input.read_exact(&mut bytes).map_err(ended_early)?;
        self.position += bytes.len() as u64;
        bytes.truncate(length as usize);
        Ok(bytes)
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.input.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(truncated());
        }
        self.left -= read as u64;
        self.position += read as u64;
        Ok(read)
    }
}

/// A header whose checksum is right.
struct TarHeader {
    block: [u8; BLOCK],
    kind: u8,
}

impl TarHeader {
    fn parse(block: [u8; BLOCK]) -> io::Result<Self> {
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let field: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
        // The checksum counts its own field as spaces.
        if octal(&block[148..156])? != sum - field + 8 * u64::from(b' ') {
            return Err(invalid("a header has another checksum; the file is no tar archive, or damaged"));
        }
        Ok(Self { kind: block[156], block })
    }

    fn length(&self) -> io::Result<u64> {
        let field = &self.block[124..136];
        match field[0] {
            // A large number in binary, of which only the last 8 bytes may be set.
            0x80 if field[1..4] == [0; 3] => {
                let bytes: [u8; 8] = field[4..12].try_into().expect("the field has 12 bytes");
                Ok(u64::from_be_bytes(bytes))
            }
            0x80.. => Err(invalid("a length is negative or exceeds 64 bits")),
            _ => octal(field),
        }
    }

    /// Returns the path; POSIX splits a long one into a prefix and a name.
    fn path(&self) -> io::Result<String> {
        let name = text(until_zero(&self.block[0..100]))?;
        let is_posix = self.block[257..263] == *b"ustar\0";
        let prefix = if is_posix { text(until_zero(&self.block[345..500]))? } else { String::new() };
        Ok(if prefix.is_empty() { name } else { format!("{prefix}/{name}") })
    }
}

impl Extension {
    /// Reads records of the form `LENGTH KEY=VALUE\n`.
    fn read_pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        let malformed = || invalid("an extended header is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
            let length = decimal(&records[..space]).ok_or_else(malformed)?;
            let length = usize::try_from(length).map_err(|_| malformed())?;
            let record = records.get(space + 1..length).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(text(value)?),
                b"linkpath" => self.link = Some(text(value)?),
                b"size" => self.length = Some(decimal(value).ok_or_else(malformed)?),
                _ if key.starts_with(b"GNU.sparse.") => return Err(invalid("sparse files are not read")),
                _ => {}
            }
            records = &records[length..];
        }
        Ok(())
    }
}

fn padding(length: u64) -> u64 {
    length.wrapping_neg() % BLOCK as u64
}

/// Parses an octal number between spaces and zeros.
fn octal(field: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(field).unwrap_or("?").trim_matches([' ', '\0']);
    if text.is_empty() {
        return Ok(0);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = u64::from_str_radix(text, 8).ok().filter(|_| digits);
    number.ok_or_else(|| invalid("a number of a header is malformed"))
}

fn decimal(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn text(bytes: &[u8]) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| invalid("a name is not UTF-8"))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

fn truncated() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the archive ends early")
}

fn ended_early(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::UnexpectedEof { truncated() } else { error }
}

#[cfg(test)]
mod tests;
