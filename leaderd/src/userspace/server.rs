//! The Unix socket on which `wg` and wgctl configure the interface.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::request::{MAX_LINE, Mistake, Reader, Request};
use super::tunnel::{Tunnel, errno};

/// Clients that are served at a time; others wait.
const MAX_CLIENTS: usize = 16;

/// A client that sends nothing, or reads nothing, for this long is disconnected.
const PATIENCE: Duration = Duration::from_secs(10);

/// The socket, removed when this is dropped if it is still ours.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Server {
    /// Binds the socket. Replaces one without a listener.
    ///
    /// # Errors
    /// If another process listens on it, or the socket cannot be created.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let at = || format!("the socket {}", path.display());
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(at)?;
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => bail!("another process serves {} already", path.display()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).with_context(at)?;
            }
            Err(e) => return Err(e).with_context(at),
        }
        let listener = UnixListener::bind(path).with_context(at)?;
        let inode = fs::metadata(path).with_context(at)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    /// If no client can be accepted any more.
    pub async fn serve(&self, tunnel: &Arc<Tunnel>) -> io::Result<()> {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, _) = self.listener.accept().await?;
            let tunnel = Arc::clone(tunnel);
            tokio::spawn(async move {
                if let Err(error) = converse(stream, &tunnel).await {
                    tracing::debug!(%error, "lost a client of the socket");
                }
                drop(place);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn converse(mut stream: UnixStream, tunnel: &Tunnel) -> io::Result<()> {
    let mut reader = Reader::default();
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE + 1));
    let mut chunk = Zeroizing::new([0; 4096]);
    loop {
        let n = timeout(PATIENCE, stream.read(&mut chunk[..])).await??;
        if n == 0 {
            return Ok(());
        }
        for byte in &chunk[..n] {
            if *byte != b'\n' {
                // Keeps one byte too many, so that the reader sees that the line is too long.
                if line.len() <= MAX_LINE {
                    line.push(*byte);
                }
                continue;
            }
            let request = reader.line(&line);
            line.clear();
            let Some(request) = request else { continue };
            let mut answer = answer(request, tunnel).await;
            answer.push('\n');
            timeout(PATIENCE, stream.write_all(answer.as_bytes())).await??;
        }
    }
}

async fn answer(request: Result<Request, Mistake>, tunnel: &Tunnel) -> Zeroizing<String> {
    let mut answer = Zeroizing::new(String::new());
    let result = match request {
        Err(mistake) => {
            tracing::warn!(error = %mistake, "refused a request with a mistake");
            -(mistake.errno as i32)
        }
        Ok(Request::Get) => {
            answer = tunnel.get().await;
            0
        }
        Ok(Request::Set(set)) => match tunnel.set(set).await {
            Ok(()) => 0,
            Err(error) => {
                tracing::warn!(%error, "cannot carry out a request");
                errno(&error)
            }
        },
    };
    answer.push_str(&format!("errno={result}\n"));
    answer
}
