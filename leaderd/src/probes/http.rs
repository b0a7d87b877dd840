//! The HTTP request of a service probe: one connection, one request, in a task of its own that is aborted with the probe.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use leaderd_core::io::{Input, ProbeError, ProbeId};
use leaderd_core::mesh::HttpRequest;
use tokio::net::TcpStream;
use tokio::sync::mpsc::Sender;

/// Most bytes of an answer that are read: a path that has carried this many works, and the probe is no download.
const MAX_ANSWER: usize = 1 << 20;

/// Sends a request over a socket whose connect is under way. The result goes to `inputs`: `ServiceConnected` and then the
/// answer's length, or an error.
pub(super) async fn request(
    fd: OwnedFd,
    probe: ProbeId,
    target: SocketAddr,
    request: HttpRequest,
    inputs: Sender<Input>,
) {
    let stream = match connected(fd).await {
        Ok(stream) => stream,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(nix::libc::EIO);
            let error = super::receive::connect_error(errno);
            let _ = inputs.send(Input::ProbeError { probe, error }).await;
            return;
        }
    };
    let _ = inputs.send(Input::ServiceConnected { probe }).await;
    let input = match exchange(stream, target, request).await {
        Ok(length) => {
            Input::ServiceReply { probe, body: Some(u32::try_from(length).unwrap_or(u32::MAX)) }
        }
        Err(error) => {
            tracing::debug!(%target, %error, "a service broke off its answer");
            Input::ProbeError { probe, error: ProbeError::Unreachable { from: None } }
        }
    };
    let _ = inputs.send(input).await;
}

async fn connected(fd: OwnedFd) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(fd.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Bytes of the answer's body, which is read to its end or to [`MAX_ANSWER`]. Any status is an answer: it came through.
async fn exchange(
    stream: TcpStream,
    target: SocketAddr,
    request: HttpRequest,
) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let method = if request.body == 0 { Method::GET } else { Method::POST };
    let request = Request::builder()
        .method(method)
        .uri(request.path)
        .header(HOST, target.to_string())
        .header(USER_AGENT, "leaderd")
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(vec![b'.'; request.body as usize])))?;
    let answer = async {
        let mut body = sender.send_request(request).await?.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len);
            if length >= MAX_ANSWER {
                break;
            }
        }
        Ok(length)
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The connection may end before the last of the answer was taken from it.
        _ = &mut connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use leaderd_core::io::{ProbeKind, ProbeSend};
    use leaderd_core::verdict::ProbeClass;

    use super::super::Probes;
    use super::*;
    use crate::counters::Counters;

    fn probe(id: u64, target: SocketAddr, body: u32) -> ProbeSend {
        ProbeSend {
            probe: ProbeId(id),
            class: ProbeClass::Service,
            via: None,
            source: "127.0.0.3".parse().unwrap(),
            target,
            kind: ProbeKind::Http(HttpRequest { path: "/healthz".into(), body }),
        }
    }

    async fn ready(probes: &mut Probes) -> Vec<Input> {
        let wait = tokio::time::timeout(Duration::from_secs(10), probes.ready());
        wait.await.expect("something arrives")
    }

    /// Reads a request's head and body, and gives the first line.
    fn read_request(stream: &mut std::net::TcpStream, body: usize) -> String {
        let mut text = Vec::new();
        let mut byte = [0; 1];
        while !text.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        stream.read_exact(&mut vec![0; body]).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("host: 127.0.0.1:"), "{text}");
        text.lines().next().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_request_with_a_body_is_sent_and_its_answer_measured() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip().to_string(), "127.0.0.3", "from the probe's own source");
            let line = read_request(&mut stream, 40_000);
            write!(stream, "HTTP/1.1 503 No\r\ncontent-length: 9000\r\n\r\n{}", "x".repeat(9000))
                .unwrap();
            line
        });
        let mut probes = Probes::bind(&[], Counters::default()).unwrap();
        assert_eq!(probes.send(&probe(1, target, 40_000)), None);
        assert_eq!(ready(&mut probes).await, [Input::ServiceConnected { probe: ProbeId(1) }]);
        let body = Some(9000);
        assert_eq!(ready(&mut probes).await, [Input::ServiceReply { probe: ProbeId(1), body }]);
        assert_eq!(server.join().unwrap(), "POST /healthz HTTP/1.1");
    }

    #[tokio::test]
    async fn a_refused_connect_a_broken_answer_and_silence_differ() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let mut probes = Probes::bind(&[], Counters::default()).unwrap();
        assert_eq!(probes.send(&probe(1, target, 0)), None);
        assert_eq!(ready(&mut probes).await, [Input::ServiceConnected { probe: ProbeId(1) }]);
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(read_request(&mut stream, 0), "GET /healthz HTTP/1.1");
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").unwrap();
        drop(stream);
        let broken = ProbeError::Unreachable { from: None };
        assert_eq!(
            ready(&mut probes).await,
            [Input::ProbeError { probe: ProbeId(1), error: broken.clone() }]
        );
        // One that never answers is connected, and no more; forgetting it closes the connection.
        assert_eq!(probes.send(&probe(2, target, 0)), None);
        assert_eq!(ready(&mut probes).await, [Input::ServiceConnected { probe: ProbeId(2) }]);
        let (mut stream, _) = listener.accept().unwrap();
        probes.forget(ProbeId(2));
        tokio::task::yield_now().await;
        let closed = std::thread::spawn(move || stream.read_to_end(&mut Vec::new()));
        tokio::time::timeout(Duration::from_secs(10), async {
            while !closed.is_finished() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the connection is closed");
        drop(listener);
        let answer = match probes.send(&probe(3, target, 0)) {
            Some(at_once) => vec![at_once],
            None => ready(&mut probes).await,
        };
        assert!(matches!(&answer[..], [Input::ProbeError { probe: ProbeId(3), .. }]), "{answer:?}");
    }
}
