//! Reads a recording: within bounds whatever the bytes say, up to where it was cut off.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use serde::de::DeserializeOwned;

use super::{Ended, Header, MAGIC, MAX_RECORD, Record, VERSION};

/// The first line is no longer than this, newline included.
const MAX_LINE: u64 = 64;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{}: {source}", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("no recording of leaderd: it does not begin with \"{MAGIC}\"")]
    NotARecording,
    #[error(
        "a recording of format {found}, and this leaderd reads format {VERSION} only: replay it with the version of leaderd that recorded it"
    )]
    Version { found: String },
    #[error("cut off before its header was whole: nothing can be run again")]
    NoHeader,
    /// Neither whole nor just cut off. Record 0 is the header.
    #[error("damaged at record {record}: {what}")]
    Damaged { record: u64, what: String },
}

/// How a recording ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    Ended(Ended),
    /// In the midst of it: the daemon was killed, or the machine lost power.
    CutOff,
}

/// The records of a stream that is not compressed (any more).
#[derive(Debug)]
pub struct Records<R> {
    from: R,
    /// How many were read.
    read: u64,
    tail: Option<Tail>,
}

/// A recording: [`Reader::header`], then [`Records::next_record`] until there is none, then [`Records::tail`].
pub type Reader<R> = Records<GzDecoder<R>>;

impl Reader<BufReader<std::fs::File>> {
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Open { path: path.to_owned(), source };
        Self::new(BufReader::new(std::fs::File::open(path).map_err(failed)?))
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads the line that says the format.
    pub fn new(mut from: R) -> Result<Self, ReadError> {
        let mut line = Vec::new();
        let read = (&mut from).take(MAX_LINE).read_until(b'\n', &mut line);
        read.map_err(|_| ReadError::NotARecording)?;
        let line = String::from_utf8(line).map_err(|_| ReadError::NotARecording)?;
        let version = line.strip_prefix(MAGIC).and_then(|v| v.strip_suffix('\n'));
        let found = version.ok_or(ReadError::NotARecording)?.to_owned();
        if found != VERSION.to_string() {
            return Err(ReadError::Version { found });
        }
        Ok(Self::of(GzDecoder::new(from)))
    }
}

impl<R: Read> Records<R> {
    pub fn of(from: R) -> Self {
        Self { from, read: 0, tail: None }
    }

    /// The first record.
    pub fn header(&mut self) -> Result<Header, ReadError> {
        self.read()?.ok_or(ReadError::NoHeader)
    }

    /// The next record, or `None` at the end; [`Self::tail`] then says which end it is.
    pub fn next_record(&mut self) -> Result<Option<Record>, ReadError> {
        if self.tail.is_some() {
            return Ok(None);
        }
        match self.read()? {
            Some(Record::Ended(why)) => self.tail = Some(Tail::Ended(why)),
            Some(record) => return Ok(Some(record)),
            None => self.tail = Some(Tail::CutOff),
        }
        Ok(None)
    }

    /// `None` until the end was met.
    pub fn tail(&self) -> Option<Tail> {
        self.tail
    }

    /// `None` if the stream ends before the record does.
    fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ReadError> {
        let mut length = [0; 4];
        if !self.fill(&mut length)? {
            return Ok(None);
        }
        let length = u32::from_le_bytes(length);
        if length > MAX_RECORD {
            return Err(self.damaged(format!("{length} bytes, the most is {MAX_RECORD}")));
        }
        // Grows with what is there, whatever the length says.
        let mut bytes = Vec::new();
        match (&mut self.from).take(length.into()).read_to_end(&mut bytes) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(self.damaged(e.to_string())),
            Ok(n) if n < length as usize => return Ok(None),
            Ok(_) => {}
        }
        match postcard::take_from_bytes(&bytes) {
            Ok((what, [])) => {
                self.read += 1;
                Ok(Some(what))
            }
            Ok((_, rest)) => Err(self.damaged(format!("{} bytes too many", rest.len()))),
            Err(e) => Err(self.damaged(e.to_string())),
        }
    }

    /// False if the stream ends first.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<bool, ReadError> {
        match self.from.read_exact(bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(self.damaged(e.to_string())),
        }
    }

    fn damaged(&self, what: String) -> ReadError {
        ReadError::Damaged { record: self.read, what }
    }
}
