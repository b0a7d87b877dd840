//! Requests of the cross-platform protocol (<https://www.wireguard.com/xplatform/>): lines of `key=value`, ended by an empty line. A
//! request is read whole before anything is done, so one with a mistake changes nothing.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;
use nix::errno::Errno;
use zeroize::Zeroizing;

/// The longest meaningful line, a key of 32 bytes in hexadecimal with its name, is 78 bytes.
pub const MAX_LINE: usize = 256;

/// More than 4,000 peers with 100 prefixes each.
pub const MAX_REQUEST: usize = 16 << 20;

/// A secret of 32 bytes: no `Debug` of its content, zeroed when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Zeroizing<[u8; 32]>);

impl Secret {
    /// All zero stands for 'none' in this protocol.
    pub fn is_none(&self) -> bool {
        *self.0 == [0; 32]
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Get,
    Set(Set),
}

/// A change of the interface; `None` leaves a setting as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    pub private_key: Option<Secret>,
    pub listen_port: Option<u16>,
    pub fwmark: Option<u32>,
    /// Remove all peers before those of this request are added.
    pub replace_peers: bool,
    /// In the order of the request: a prefix belongs to the last peer that it names.
    pub peers: Vec<SetPeer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetPeer {
    pub public_key: [u8; 32],
    pub remove: bool,
    /// Do nothing if there is no such peer.
    pub update_only: bool,
    pub preshared_key: Option<Secret>,
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 is off.
    pub keepalive: Option<u16>,
    pub replace_allowed_ips: bool,
    /// Without host bits; `false` removes the prefix from this peer.
    pub allowed_ips: Vec<(IpNet, bool)>,
}

impl SetPeer {
    pub fn new(public_key: [u8; 32]) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// An invalid request: what is wrong with it, and the number that answers it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Mistake {
    pub errno: Errno,
    pub what: &'static str,
}

const fn mistake(what: &'static str) -> Mistake {
    Mistake { errno: Errno::EINVAL, what }
}

/// Collects the lines of requests.
#[derive(Debug, Default)]
pub struct Reader {
    operation: Option<Request>,
    /// The first mistake of the present request: all its lines are read before it is answered.
    mistake: Option<Mistake>,
    bytes: usize,
}

impl Reader {
    /// Takes a line without its newline. Returns a request when the line ended one. Empty lines between requests mean nothing.
    pub fn line(&mut self, line: &[u8]) -> Option<Result<Request, Mistake>> {
        if line.is_empty() {
            self.bytes = 0;
            let operation = self.operation.take();
            return match (self.mistake.take(), operation) {
                (Some(mistake), _) => Some(Err(mistake)),
                (None, operation) => operation.map(Ok),
            };
        }
        if self.mistake.is_none()
            && let Err(mistake) = self.take(line)
        {
            self.mistake = Some(mistake);
            // Nothing of the request is used: free what a long one has collected.
            self.operation = None;
        }
        None
    }

    fn take(&mut self, line: &[u8]) -> Result<(), Mistake> {
        self.bytes += line.len() + 1;
        if self.bytes > MAX_REQUEST {
            return Err(Mistake { errno: Errno::E2BIG, what: "the request is too long" });
        }
        if line.len() > MAX_LINE {
            return Err(mistake("a line is too long"));
        }
        let line = std::str::from_utf8(line).map_err(|_| mistake("a line is not UTF-8"))?;
        let (key, value) = line.split_once('=').ok_or(mistake("a line is not key=value"))?;
        match (&mut self.operation, key) {
            (None, "get") if value == "1" => self.operation = Some(Request::Get),
            (None, "set") if value == "1" => self.operation = Some(Request::Set(Set::default())),
            (None, _) => return Err(mistake("a request begins with get=1 or set=1")),
            (Some(Request::Get), _) => return Err(mistake("get=1 stands alone")),
            (Some(Request::Set(set)), _) => set.take(key, value)?,
        }
        Ok(())
    }
}

impl Set {
    fn take(&mut self, key: &str, value: &str) -> Result<(), Mistake> {
        if key == "public_key" {
            self.peers.push(SetPeer::new(*unhex(value)?));
            return Ok(());
        }
        match (self.peers.last_mut(), key) {
            (None, "private_key") => self.private_key = Some(Secret(unhex(value)?)),
            (None, "listen_port") => self.listen_port = Some(number(value, "listen_port")?),
            (None, "fwmark") => self.fwmark = Some(fwmark(value)?),
            (None, "replace_peers") => self.replace_peers = truth(value)?,
            (Some(peer), "remove") => peer.remove = truth(value)?,
            (Some(peer), "update_only") => peer.update_only = truth(value)?,
            (Some(peer), "preshared_key") => peer.preshared_key = Some(Secret(unhex(value)?)),
            (Some(peer), "endpoint") => peer.endpoint = Some(number(value, "endpoint")?),
            (Some(peer), "persistent_keepalive_interval") => {
                peer.keepalive = Some(number(value, "persistent_keepalive_interval")?);
            }
            (Some(peer), "replace_allowed_ips") => {
                peer.replace_allowed_ips = truth(value)?;
                // After prefixes it removes those as well: lines take effect in their order.
                peer.allowed_ips.clear();
            }
            (Some(peer), "allowed_ip") => {
                let (value, add) = match value.strip_prefix('-') {
                    Some(rest) => (rest, false),
                    None => (value, true),
                };
                let prefix: IpNet = number(value, "allowed_ip")?;
                peer.allowed_ips.push((prefix.trunc(), add));
            }
            (Some(_), "protocol_version") if value == "1" => {}
            (Some(_), "protocol_version") => {
                return Err(Mistake {
                    errno: Errno::EPROTONOSUPPORT,
                    what: "only protocol_version 1 is supported",
                });
            }
            (None, _) => return Err(mistake("not a key of an interface")),
            (Some(_), _) => return Err(mistake("not a key of a peer")),
        }
        Ok(())
    }
}

fn truth(value: &str) -> Result<bool, Mistake> {
    if value == "true" { Ok(true) } else { Err(mistake("this key can only be true")) }
}

fn number<T: FromStr>(value: &str, what: &'static str) -> Result<T, Mistake> {
    value.parse().map_err(|_| mistake(what))
}

/// `wg` writes it in decimal; hexadecimal and `off` are what people type.
fn fwmark(value: &str) -> Result<u32, Mistake> {
    match value.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).map_err(|_| mistake("fwmark")),
        None => number(value, "fwmark"),
    }
}

fn unhex(text: &str) -> Result<Zeroizing<[u8; 32]>, Mistake> {
    const WRONG: Mistake = mistake("a key is 64 hexadecimal digits");
    let digits = text.as_bytes();
    let mut bytes = Zeroizing::new([0; 32]);
    if digits.len() != 64 {
        return Err(WRONG);
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16).ok_or(WRONG);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(bytes)
}

/// A key as the protocol writes it.
pub fn hex(bytes: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(64));
    for b in bytes {
        for digit in [b >> 4, b & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text
}

impl fmt::Display for Set {
    /// Writes the request in the protocol's form, with its secrets. Reading that gives the same [`Set`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "set=1")?;
        if let Some(key) = &self.private_key {
            writeln!(f, "private_key={}", *hex(&key.0))?;
        }
        if let Some(port) = self.listen_port {
            writeln!(f, "listen_port={port}")?;
        }
        if let Some(mark) = self.fwmark {
            writeln!(f, "fwmark={mark}")?;
        }
        if self.replace_peers {
            writeln!(f, "replace_peers=true")?;
        }
        for peer in &self.peers {
            writeln!(f, "public_key={}", *hex(&peer.public_key))?;
            if peer.remove {
                writeln!(f, "remove=true")?;
            }
            if peer.update_only {
                writeln!(f, "update_only=true")?;
            }
            if let Some(key) = &peer.preshared_key {
                writeln!(f, "preshared_key={}", *hex(&key.0))?;
            }
            if let Some(endpoint) = peer.endpoint {
                writeln!(f, "endpoint={endpoint}")?;
            }
            if let Some(seconds) = peer.keepalive {
                writeln!(f, "persistent_keepalive_interval={seconds}")?;
            }
            if peer.replace_allowed_ips {
                writeln!(f, "replace_allowed_ips=true")?;
            }
            for (prefix, add) in &peer.allowed_ips {
                writeln!(f, "allowed_ip={}{prefix}", if *add { "" } else { "-" })?;
            }
        }
        writeln!(f)
    }
}

/// Returns all requests in some bytes, as the socket would read them. Lines after the last empty one are no request yet.
pub fn read_all(bytes: &[u8]) -> Vec<Result<Request, Mistake>> {
    let mut reader = Reader::default();
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    bytes[..whole]
        .split_inclusive(|b| *b == b'\n')
        .filter_map(|l| reader.line(&l[..l.len() - 1]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

    fn set(text: &str) -> Result<Set, Mistake> {
        match read_all(format!("set=1\n{text}\n").as_bytes()).remove(0)? {
            Request::Set(set) => Ok(set),
            Request::Get => panic!("{text}"),
        }
    }

    #[test]
    fn the_example_of_the_protocol_is_understood() {
        // <https://www.wireguard.com/xplatform/#example-dialog>, shortened.
        let set = set("private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a\n\
             fwmark=0\nlisten_port=12912\nreplace_peers=true\n\
             public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n\
             preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52\n\
             replace_allowed_ips=true\nallowed_ip=192.168.4.4/32\nendpoint=[abcd:23::33%2]:51820\n\
             public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376\n\
             replace_allowed_ips=true\nallowed_ip=192.168.4.6/32\npersistent_keepalive_interval=111\n\
             endpoint=182.122.22.19:3233\n\
             public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58\nremove=true\n")
        .unwrap();
        assert_eq!((set.listen_port, set.fwmark, set.replace_peers), (Some(12912), Some(0), true));
        assert_eq!(set.peers.len(), 3);
        assert_eq!(set.peers[0].allowed_ips, [("192.168.4.4/32".parse().unwrap(), true)]);
        assert_eq!(set.peers[1].keepalive, Some(111));
        assert!(set.peers[2].remove && !set.peers[1].remove);
    }

    #[test]
    fn requests_follow_each_other_on_one_connection() {
        let text = format!(
            "get=1\n\n\nset=1\nlisten_port=7\n\nset=1\npublic_key={KEY}\nremove=true\n\nget=1\n"
        );
        let all = read_all(text.as_bytes());
        assert_eq!(all.len(), 3, "the last has not ended: {all:?}");
        assert_eq!(all[0], Ok(Request::Get));
        assert!(
            matches!(&all[2], Ok(Request::Set(s)) if s.peers[0].remove && s.listen_port.is_none())
        );
    }

    #[test]
    fn a_mistake_refuses_the_whole_request_and_the_next_is_read() {
        for wrong in [
            "listen_port=70000",
            "listen_port",
            "private_key=12",
            "fwmark=x",
            "replace_peers=false",
            "allowed_ip=10.0.0.0/8",
            "news=1",
            &format!("public_key={KEY}\nallowed_ip=10.0.0.0/33"),
            &format!("public_key={KEY}\nallowed_ip=10.0.0.1"),
            &format!("public_key={KEY}\nendpoint=example.net:1"),
            &format!("public_key={KEY}\nlisten_port=1"),
            &format!("public_key={KEY}\nprotocol_version=2"),
            &format!("public_key={}", "é".repeat(32)),
            &"a".repeat(MAX_LINE + 1),
        ] {
            let text = format!("set=1\n{wrong}\nlisten_port=1\n\nget=1\n\n");
            let all = read_all(text.as_bytes());
            assert!(all[0].is_err(), "{wrong}");
            assert_eq!(all[1], Ok(Request::Get), "{wrong}");
        }
        assert!(read_all(b"get=2\n\n")[0].is_err());
        assert!(read_all(b"get=1\nlisten_port=1\n\n")[0].is_err());
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let mut reader = Reader::default();
        assert!(reader.line(b"set=1").is_none());
        assert!(reader.line(format!("public_key={KEY}").as_bytes()).is_none());
        for _ in 0..MAX_REQUEST / 20 {
            assert!(reader.line(b"allowed_ip=10.0.0.0/8").is_none());
        }
        assert!(reader.operation.is_none(), "what it collected is freed");
        assert_eq!(reader.line(b"").unwrap().unwrap_err().errno, Errno::E2BIG);
        assert_eq!(reader.line(b"get=1"), None);
        assert_eq!(reader.line(b""), Some(Ok(Request::Get)));
    }

    #[test]
    fn prefixes_lose_their_host_bits_and_can_be_removed() {
        let set =
            set(&format!("public_key={KEY}\nallowed_ip=10.1.2.3/8\nallowed_ip=-fd00::1/64\n"))
                .unwrap();
        let expected =
            [("10.0.0.0/8".parse().unwrap(), true), ("fd00::/64".parse().unwrap(), false)];
        assert_eq!(set.peers[0].allowed_ips, expected);
    }

    #[test]
    fn a_secret_is_not_shown() {
        let set = set(&format!("private_key={KEY}\n")).unwrap();
        assert!(!format!("{set:?}").contains("b8"));
        assert!(set.to_string().contains(KEY), "only the protocol's own form has it");
    }
}
