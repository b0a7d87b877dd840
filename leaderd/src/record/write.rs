//! Writing a recording: [`FileWriter`] knows the format, [`Recorder`] has a thread write, and never waits for it.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use leaderd_core::io::{Effect, Input};
use leaderd_core::time::Now;
use serde::Serialize;

use super::{Ended, Header, MAGIC, MAX_RECORD, Record, RecordBuilder, VERSION};

/// Records and bytes that wait for the disk. A recording with a hole is worth nothing, so when full it ends.
const MAX_WAITING: usize = 8192;
const LIMITS: Limits = Limits { waiting: 64 << 20, file: 2 << 30 };
/// A killed daemon loses this much of its recording at most.
const FLUSH: Duration = Duration::from_secs(1);
/// How long a daemon that stops waits for the last bytes.
const LAST: Duration = Duration::from_secs(2);

/// Writes the format to anything.
#[derive(Debug)]
pub struct FileWriter<W: Write> {
    gzip: GzEncoder<Counted<W>>,
}

#[derive(Debug)]
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> FileWriter<W> {
    pub fn new(mut inner: W, header: &Header) -> std::io::Result<Self> {
        inner.write_all(format!("{MAGIC}{VERSION}\n").as_bytes())?;
        // Nearly all of it is padding and repetition: the fastest level leaves a tenth, and more effort little less.
        let gzip = GzEncoder::new(Counted { inner, bytes: 0 }, Compression::fast());
        let mut this = Self { gzip };
        this.write(&encode(header)?)?;
        Ok(this)
    }

    pub fn record(&mut self, record: &Record) -> std::io::Result<()> {
        self.write(&encode(record)?)
    }

    /// A record as [`encode`] made it.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(bytes.len()).ok().filter(|l| *l <= MAX_RECORD);
        let length = length.ok_or_else(|| std::io::Error::other("a record is too long"))?;
        self.gzip.write_all(&length.to_le_bytes())?;
        self.gzip.write_all(bytes)
    }

    /// Compressed bytes so far.
    fn written(&self) -> u64 {
        self.gzip.get_ref().bytes
    }

    /// All so far can be read back, even if nothing follows.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.gzip.flush()
    }

    /// Ends the recording, and gives back what was written to.
    pub fn finish(mut self, why: Ended) -> std::io::Result<W> {
        self.record(&Record::Ended(why))?;
        let mut inner = self.gzip.finish()?.inner;
        inner.flush()?;
        Ok(inner)
    }
}

fn encode(what: &impl Serialize) -> std::io::Result<Vec<u8>> {
    postcard::to_stdvec(what).map_err(std::io::Error::other)
}

/// In bytes.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// That wait for the disk.
    waiting: usize,
    /// Of the whole file, compressed.
    file: u64,
}

/// Records what an engine does: [`Recorder::input`], [`Recorder::effect`] for each, [`Recorder::done`].
#[derive(Debug)]
pub struct Recorder {
    builder: RecordBuilder,
    /// `None`: the recording has ended.
    records: Option<SyncSender<Vec<u8>>>,
    limits: Limits,
    waiting: Arc<AtomicUsize>,
    /// What the writer writes last.
    why: Arc<Mutex<Ended>>,
    finished: Receiver<()>,
}

impl Recorder {
    /// Makes the file, readable by its owner only, and starts the thread that writes it. A file that is there already is
    /// kept as `FILE.old`: a daemon that is started again is not to wipe out what it did before.
    pub fn create(path: &Path, header: &Header) -> std::io::Result<Self> {
        let there = std::fs::symlink_metadata(path).ok();
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        // A link in its place is moved away as well, and never written through.
        if there.as_ref().is_some_and(|m| m.is_file() || m.is_symlink()) {
            let mut old = path.as_os_str().to_owned();
            old.push(".old");
            std::fs::rename(path, old)?;
        }
        match there {
            // A device or a pipe is no file to make.
            Some(found) if !found.is_file() && !found.is_symlink() => {
                options.custom_flags(nix::libc::O_NOFOLLOW)
            }
            _ => options.create_new(true),
        };
        let file = options.open(path)?;
        Self::start(BufWriter::new(file), header, LIMITS)
    }

    fn start(
        file: impl Write + Send + 'static,
        header: &Header,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let mut file = FileWriter::new(file, header)?;
        file.flush()?;
        let (tx, rx) = sync_channel(MAX_WAITING);
        let (finishing, finished) = sync_channel(1);
        let waiting = Arc::<AtomicUsize>::default();
        let why = Arc::new(Mutex::new(Ended::Stopped));
        let writing = Writing { waiting: waiting.clone(), why: why.clone(), max_file: limits.file };
        std::thread::Builder::new().name("record".into()).spawn(move || {
            if let Err(error) = writing.run(file, &rx) {
                tracing::error!(%error, "cannot write the recording");
            }
            let _ = finishing.send(());
        })?;
        Ok(Self {
            builder: RecordBuilder::default(),
            records: Some(tx),
            limits,
            waiting,
            why,
            finished,
        })
    }

    pub fn input(&mut self, now: Now, input: &Input) {
        if self.records.is_some() {
            self.builder.input(now, input);
        }
    }

    pub fn effect(&mut self, effect: &Effect) {
        if self.records.is_some() {
            self.builder.effect(effect);
        }
    }

    /// Ends the record of an input, after its last effect. `authentic`: see [`RecordBuilder::record`]. Never waits.
    pub fn done(&mut self, authentic: bool) {
        let Some(records) = &self.records else { return };
        let sent = encode(&self.builder.record(authentic)).is_ok_and(|bytes| {
            let before = self.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
            before + bytes.len() <= self.limits.waiting && records.try_send(bytes).is_ok()
        });
        if !sent {
            tracing::error!("the recording ends here: its disk is too slow or full");
            self.end(Ended::DiskTooSlow);
        }
    }

    fn end(&mut self, why: Ended) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
        self.records = None;
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if std::thread::panicking() && self.builder.has_input() && self.records.is_some() {
            // The input that the core did not survive is the one worth most.
            self.done(true);
            self.end(Ended::Panicked);
        }
        self.records = None;
        let _ = self.finished.recv_timeout(LAST);
    }
}

/// The thread's side.
struct Writing {
    waiting: Arc<AtomicUsize>,
    why: Arc<Mutex<Ended>>,
    max_file: u64,
}

impl Writing {
    fn run<W: Write>(
        self,
        mut file: FileWriter<W>,
        records: &Receiver<Vec<u8>>,
    ) -> std::io::Result<()> {
        let mut flushed = Instant::now();
        let mut dirty = false;
        loop {
            match records.recv_timeout(FLUSH) {
                Ok(bytes) => {
                    file.write(&bytes)?;
                    self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
                    dirty = true;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if file.written() > self.max_file {
                file.finish(Ended::Full)?;
                tracing::error!(bytes = self.max_file, "the recording ends here: it is full");
                return Ok(());
            }
            if dirty && flushed.elapsed() >= FLUSH {
                file.flush()?;
                (flushed, dirty) = (Instant::now(), false);
            }
        }
        let why = *self.why.lock().unwrap_or_else(PoisonError::into_inner);
        file.finish(why).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::BufReader;
    use std::os::unix::fs::PermissionsExt;

    use super::super::{Reader, Tail};
    use super::*;
    use crate::fixture::example_mesh;

    fn header() -> Header {
        let mesh = example_mesh();
        let me = mesh.nodes.keys().next().expect("it has nodes").clone();
        Header {
            leaderd: "test".into(),
            mesh,
            me,
            restored: BTreeMap::new(),
            seed: 7,
            resolved: BTreeMap::new(),
            now: Now::default(),
        }
    }

    fn feed(recorder: &mut Recorder, from: u64, to: u64) {
        for ticket in from..to {
            let ticket = leaderd_core::io::Ticket(ticket);
            recorder.input(Now::default(), &Input::Persisted { ticket });
            recorder.done(true);
        }
    }

    fn count(path: &Path) -> (u64, Tail) {
        let mut reader = Reader::open(path).unwrap();
        assert_eq!(reader.header().unwrap(), header());
        let mut n = 0;
        while reader.next_record().unwrap().is_some() {
            n += 1;
        }
        (n, reader.tail().unwrap())
    }

    /// Only the version that made a recording reads it. Every version must find out which that is: by the first line, and then by
    /// the header's first field.
    #[test]
    fn the_bytes_of_a_recordings_first_line_and_records_do_not_change() {
        let header = header();
        let file = FileWriter::new(Vec::new(), &header).unwrap().finish(Ended::Stopped).unwrap();
        assert!(file.starts_with(format!("leaderd recording {VERSION}\n").as_bytes()));
        let Header { leaderd, mesh, me, restored, seed, resolved, now } = &header;
        let fields = (leaderd, mesh, me, restored, seed, resolved, now);
        assert_eq!(encode(&header).unwrap(), encode(&fields).unwrap());
        let started = Record::Started { effects: Vec::new() };
        assert_eq!(encode(&started).unwrap(), [0, 0]);
        let mut builder = RecordBuilder::default();
        builder.input(Now::default(), &Input::Timeout);
        assert_eq!(encode(&builder.record(true)).unwrap(), [1, 0, 0, 0, 0]);
        let ended = [Ended::Stopped, Ended::DiskTooSlow, Ended::Full, Ended::Panicked];
        for (place, why) in ended.into_iter().enumerate() {
            assert_eq!(encode(&Record::Ended(why)).unwrap(), [2, place as u8]);
        }
    }

    #[test]
    fn a_recording_is_read_back_and_only_its_owner_may_read_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.recording");
        for round in 0..2 {
            let mut recorder = Recorder::create(&path, &header()).unwrap();
            recorder.done(true);
            feed(&mut recorder, 0, 100 + round);
            drop(recorder);
            assert_eq!(count(&path), (101 + round, Tail::Ended(Ended::Stopped)));
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(count(&dir.path().join("a.recording.old")).0, 101, "the one before is kept");
    }

    /// A disk that takes nothing while the lock is held.
    struct Stuck(File, Arc<Mutex<()>>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _held = self.1.lock().unwrap();
            self.0.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.0.flush()
        }
    }
    #[test]
    fn a_disk_that_is_too_slow_ends_the_recording_with_a_mark_and_never_stalls_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slow");
        let gate = Arc::new(Mutex::new(()));
        let stuck = Stuck(File::create(&path).unwrap(), gate.clone());
        let limits = Limits { waiting: 20_000, ..LIMITS };
        let mut recorder = Recorder::start(stuck, &header(), limits).unwrap();
        let held = gate.lock().unwrap();
        // Returns, though nothing can be written.
        let mut noise = 1u64;
        for n in 0..3_000 {
            let bytes = std::iter::repeat_with(|| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (noise >> 56) as u8
            });
            let bytes = bytes.take(1_000).collect();
            let probe = leaderd_core::io::ProbeId(n);
            recorder.input(Now::default(), &Input::ProbeReply { probe, bytes });
            recorder.done(true);
        }
        assert!(recorder.records.is_none(), "3 MB cannot wait");
        drop(held);
        recorder.finished.recv().unwrap();
        let (read, tail) = count(&path);
        assert_eq!(tail, Tail::Ended(Ended::DiskTooSlow));
        assert!((10..3_000).contains(&read), "{read}");
    }

    #[test]
    fn a_full_file_ends_with_a_mark_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("full");
        let file = File::create(&path).unwrap();
        let mut recorder =
            Recorder::start(file, &header(), Limits { file: 100, ..LIMITS }).unwrap();
        feed(&mut recorder, 0, 1);
        recorder.finished.recv().unwrap();
        assert_eq!(count(&path).1, Tail::Ended(Ended::Full));
    }

    #[test]
    fn a_recording_that_was_cut_anywhere_is_read_up_to_there() {
        let mut file = FileWriter::new(Vec::new(), &header()).unwrap();
        let mut builder = RecordBuilder::default();
        for n in 0..50 {
            let bytes = vec![n; 100];
            builder.input(
                Now::default(),
                &Input::ProbeReply { probe: leaderd_core::io::ProbeId(n.into()), bytes },
            );
            file.record(&builder.record(true)).unwrap();
            if n % 10 == 0 {
                file.flush().unwrap();
            }
        }
        let whole = file.finish(Ended::Stopped).unwrap();
        let read = |bytes: &[u8]| {
            let mut reader = Reader::new(BufReader::new(bytes)).map_err(drop)?;
            reader.header().map_err(drop)?;
            let mut n = 0;
            while reader.next_record().map_err(drop)?.is_some() {
                n += 1;
            }
            Ok::<_, ()>((n, reader.tail().unwrap()))
        };
        assert_eq!(read(&whole), Ok((50, Tail::Ended(Ended::Stopped))));
        let mut before = 0;
        for cut in 0..whole.len() {
            match read(&whole[..cut]) {
                Ok((n, Tail::CutOff)) => {
                    assert!(n >= before, "{n} records of {cut} bytes");
                    before = n;
                }
                // All is there but the checksum at the end.
                Ok((50, Tail::Ended(Ended::Stopped))) => assert!(cut + 12 > whole.len()),
                Ok(other) => panic!("{cut}: {other:?}"),
                Err(()) => assert_eq!(before, 0, "only without a header, at {cut}"),
            }
        }
        assert!(before >= 41, "{before}");
    }

    #[test]
    fn a_file_that_is_no_recording_is_refused_with_a_reason() {
        let error = |bytes: &[u8]| match Reader::new(BufReader::new(bytes)) {
            Err(error) => error.to_string(),
            Ok(mut reader) => reader.header().unwrap_err().to_string(),
        };
        assert!(error(b"").contains("no recording of leaderd"));
        assert!(error(&[0xff; 300]).contains("no recording of leaderd"));
        assert!(error(b"leaderd recording 99\n...").contains("format 99"));
        assert!(error(format!("{MAGIC}{VERSION}\n").as_bytes()).contains("cut off"));
        assert!(
            error(format!("{MAGIC}{VERSION}\nno gzip, no gzip").as_bytes()).contains("damaged")
        );
    }

    #[test]
    fn nothing_is_written_through_a_link_in_the_recordings_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, precious) = (dir.path().join("a.recording"), dir.path().join("precious"));
        std::fs::write(&precious, "kept").unwrap();
        for target in [&precious, &dir.path().join("nowhere")] {
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink(target, &path).unwrap();
            drop(Recorder::create(&path, &header()).unwrap());
            assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
        }
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "kept");
        assert!(!dir.path().join("nowhere").exists());
    }
}
