//! What a guest's sockets may do, rule by rule.
//!
//! ```text
//! RULE     = "*" | "dns" | [PROTOCOL ":"] ADDRESS ":" PORTS
//! PROTOCOL = "tcp" | "udp"                                   both without it
//! ADDRESS  = "*" | IPv4 ["/" BITS] | "[" IPv6 ["/" BITS] "]"
//! PORTS    = "*" | PORT | FIRST "-" LAST
//! ```
//!
//! `dns` is for `connect` only, and admits that names are asked of the nameservers that `/etc/resolv.conf` has when the guest
//! starts: the C library does that in its own way, over sockets that no guest has. Without it names are those of `/etc/hosts`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// One thing that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// Everything.
    Everything,
    /// To ask nameservers.
    Nameservers,
    /// These addresses and ports.
    Endpoints(Endpoints),
}

/// Addresses and ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// `None` for both.
    pub protocol: Option<Protocol>,
    /// The network and the number of its bits; `None` for every address of both families.
    pub network: Option<(IpAddr, u8)>,
    /// First and last.
    pub ports: RangeInclusive<u16>,
}

/// What the engine's sockets speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Why a text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{rule:?}: {problem} (a rule is *, dns, or [tcp:|udp:]ADDRESS:PORTS, like tcp:10.0.0.0/8:443, udp:*:53, [::1]:8000-8080)"
)]
pub struct Error {
    rule: String,
    problem: &'static str,
}

impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "*" => Ok(Self::Everything),
            "dns" => Ok(Self::Nameservers),
            _ => endpoints(text).map(Self::Endpoints).map_err(|problem| Error {
                rule: text.to_owned(),
                problem,
            }),
        }
    }
}

fn endpoints(text: &str) -> Result<Endpoints, &'static str> {
    let (protocol, rest) = match text.split_once(':') {
        Some(("tcp", rest)) => (Some(Protocol::Tcp), rest),
        Some(("udp", rest)) => (Some(Protocol::Udp), rest),
        _ => (None, text),
    };
    let (address, ports) = rest.rsplit_once(':').ok_or("no port")?;
    Ok(Endpoints {
        protocol,
        network: network(address)?,
        ports: ports_of(ports)?,
    })
}

fn network(text: &str) -> Result<Option<(IpAddr, u8)>, &'static str> {
    if text == "*" {
        return Ok(None);
    }
    let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let (address, bits) = match inside.unwrap_or(text).split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (inside.unwrap_or(text), None),
    };
    let (address, most) = match inside {
        Some(_) => (
            IpAddr::from(Ipv6Addr::from_str(address).map_err(|_| "not an IPv6 address")?),
            128,
        ),
        None => (
            IpAddr::from(Ipv4Addr::from_str(address).map_err(|_| "not an IPv4 address")?),
            32,
        ),
    };
    let bits = match bits {
        Some(bits) => bits.parse().ok().filter(|bits| *bits <= most),
        None => Some(most),
    };
    let bits = bits.ok_or("not a number of bits of such an address")?;
    match IpAddr::to_canonical(&address) == address {
        // What is sent to it leaves as IPv4, and so is what is compared.
        false => Err("an IPv4 address in the clothes of IPv6: write it as IPv4"),
        true if masked(address, bits) != address => Err("the address has bits beyond the network's"),
        true => Ok(Some((address, bits))),
    }
}

fn ports_of(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    if text == "*" {
        return Ok(0..=u16::MAX);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last && first > 0 => Ok(first..=last),
        _ => Err("not a port, nor FIRST-LAST"),
    }
}

/// The address with all bits but the first `bits` cleared.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

impl Rule {
    /// Whether it allows this; the address is canonical ([`IpAddr::to_canonical`]).
    fn allows(&self, protocol: Protocol, to: SocketAddr) -> bool {
        match self {
            Self::Everything => true,
            Self::Nameservers => false,
            Self::Endpoints(endpoints) => endpoints.contain(protocol, to),
        }
    }
}

impl Endpoints {
    fn contain(&self, protocol: Protocol, to: SocketAddr) -> bool {
        let network = self
            .network
            .is_none_or(|(network, bits)| network.is_ipv4() == to.is_ipv4() && masked(to.ip(), bits) == network);
        network && self.protocol.is_none_or(|one| one == protocol) && self.ports.contains(&to.port())
    }
}

/// What the guest's sockets may do. Each list of rules comes from one authority (the file, an annotation); something is
/// allowed if every list that there is allows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Local addresses to bind and listen on.
    pub listen: Vec<Vec<Rule>>,
    /// Remote addresses to connect and send to.
    pub connect: Vec<Vec<Rule>>,
}

impl Network {
    /// Whether there is anything that it does not allow.
    pub fn restricts(&self) -> bool {
        restrict(&self.listen) || self.restricts_connect()
    }

    /// Whether there is an address that nothing may be sent to.
    pub fn restricts_connect(&self) -> bool {
        restrict(&self.connect)
    }

    /// Whether a socket may be bound to this; port 0 is one of the kernel's choice.
    pub fn may_listen(&self, protocol: Protocol, on: SocketAddr) -> bool {
        let on = SocketAddr::new(on.ip().to_canonical(), on.port());
        allowed(&self.listen, |rule| rule.allows(protocol, on))
    }

    /// Whether something may be sent to this.
    pub fn may_connect(&self, protocol: Protocol, to: SocketAddr) -> bool {
        // To the kernel, nowhere is here (ip(7)).
        let ip = match to.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let to = SocketAddr::new(ip, to.port());
        allowed(&self.connect, |rule| rule.allows(protocol, to))
    }

    /// Whether names may be asked of nameservers.
    pub fn may_ask_nameservers(&self) -> bool {
        allowed(&self.connect, |rule| {
            matches!(rule, Rule::Everything | Rule::Nameservers)
        })
    }
}

fn restrict(lists: &[Vec<Rule>]) -> bool {
    lists.iter().any(|list| !list.contains(&Rule::Everything))
}

fn allowed(lists: &[Vec<Rule>], allows: impl Fn(&Rule) -> bool) -> bool {
    lists.iter().all(|list| list.iter().any(&allows))
}

/// The ports of TCP that `lists` allow for any address at all, if they are few: `most` at most.
pub fn tcp_ports(lists: &[Vec<Rule>], most: usize) -> Option<Vec<u16>> {
    let mut ports: Option<Vec<u16>> = None;
    for list in lists {
        let Some(of_list) = ports_of_list(list, most) else {
            continue;
        };
        ports = Some(match ports {
            None => of_list,
            Some(others) => others.into_iter().filter(|port| of_list.contains(port)).collect(),
        });
    }
    ports
}

fn ports_of_list(list: &[Rule], most: usize) -> Option<Vec<u16>> {
    let mut ports = Vec::new();
    for rule in list {
        match rule {
            Rule::Everything => return None,
            Rule::Nameservers => {}
            Rule::Endpoints(endpoints) if endpoints.protocol == Some(Protocol::Udp) => {}
            Rule::Endpoints(endpoints) if endpoints.ports.len() > most => return None,
            Rule::Endpoints(endpoints) => ports.extend(endpoints.ports.clone()),
        }
    }
    (ports.len() <= most).then_some(ports)
}

impl fmt::Display for Protocol {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn connect(lists: &[&[&str]]) -> Network {
        Network {
            connect: lists.iter().map(|list| rules(list)).collect(),
            ..Network::default()
        }
    }

    fn to(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn rules_say_what_is_allowed() {
        let cases = [
            ("tcp:127.0.0.1:8080", Protocol::Tcp, "127.0.0.1:8080", true),
            ("tcp:127.0.0.1:8080", Protocol::Udp, "127.0.0.1:8080", false),
            ("tcp:127.0.0.1:8080", Protocol::Tcp, "127.0.0.2:8080", false),
            ("tcp:127.0.0.1:8080", Protocol::Tcp, "127.0.0.1:8081", false),
            ("udp:*:53", Protocol::Udp, "[2001:db8::1]:53", true),
            ("tcp:10.0.0.0/8:*", Protocol::Tcp, "10.255.0.1:1", true),
            ("tcp:10.0.0.0/8:*", Protocol::Tcp, "11.0.0.1:1", false),
            ("[::1]:80", Protocol::Udp, "[::1]:80", true),
            ("[::1]:80", Protocol::Tcp, "[::2]:80", false),
            ("[fd00:/8]:80", Protocol::Tcp, "[fd01::1]:80", true),
            ("*:8000-8080", Protocol::Tcp, "192.0.2.1:8080", true),
            ("*:8000-8080", Protocol::Tcp, "192.0.2.1:8081", false),
            ("0.0.0.0/0:1", Protocol::Tcp, "192.0.2.1:1", true),
            ("0.0.0.0/0:1", Protocol::Tcp, "[2001:db8::1]:1", false),
            ("[::/0]:1", Protocol::Tcp, "[2001:db8::1]:1", true),
            ("dns", Protocol::Udp, "127.0.0.1:53", false),
            ("*", Protocol::Udp, "127.0.0.1:53", true),
        ];
        for (rule, protocol, address, allowed) in cases {
            let rule = rule.replace("fd00:/8", "fd00::/8");
            let network = connect(&[&[&rule]]);
            assert_eq!(network.may_connect(protocol, to(address)), allowed, "{rule} {address}");
        }
    }

    #[test]
    fn other_words_for_an_address_are_the_same_address() {
        let ipv4 = connect(&[&["tcp:127.0.0.1:80"]]);
        assert!(ipv4.may_connect(Protocol::Tcp, to("[::ffff:127.0.0.1]:80")));
        assert!(ipv4.may_connect(Protocol::Tcp, to("0.0.0.0:80")));
        assert!(ipv4.may_connect(Protocol::Tcp, to("[::ffff:0.0.0.0]:80")));
        assert!(!ipv4.may_connect(Protocol::Tcp, to("[::]:80")));
        let others = connect(&[&["tcp:0.0.0.0/8:80", "[::/0]:80"]]);
        assert!(!others.may_connect(Protocol::Tcp, to("0.0.0.0:80")), "it is 127.0.0.1");
        assert!(
            !others.may_connect(Protocol::Tcp, to("[::ffff:192.0.2.1]:80")),
            "it is IPv4"
        );
    }

    #[test]
    fn every_list_has_to_allow_it() {
        let network = connect(&[&["tcp:*:443", "dns"], &["*"], &["tcp:10.0.0.0/8:*"]]);
        assert!(network.may_connect(Protocol::Tcp, to("10.0.0.1:443")));
        assert!(!network.may_connect(Protocol::Tcp, to("10.0.0.1:80")));
        assert!(!network.may_connect(Protocol::Tcp, to("11.0.0.1:443")));
        assert!(!network.may_ask_nameservers());
        assert!(
            network.may_listen(Protocol::Tcp, to("0.0.0.0:0")),
            "nobody restricts that"
        );
        let nothing = connect(&[&[]]);
        assert!(!nothing.may_connect(Protocol::Udp, to("127.0.0.1:53")) && !nothing.may_ask_nameservers());
        assert!(!Network::default().restricts() && !connect(&[&["*"]]).restricts() && nothing.restricts());
        assert!(Network::default().may_ask_nameservers());
    }

    #[test]
    fn few_ports_are_enumerated() {
        let lists = |texts: &[&[&str]]| connect(texts).connect;
        assert_eq!(tcp_ports(&lists(&[]), 9), None);
        assert_eq!(tcp_ports(&lists(&[&[]]), 9), Some(vec![]));
        assert_eq!(
            tcp_ports(&lists(&[&["udp:*:*", "dns", "10.0.0.0/8:1-3"]]), 9),
            Some(vec![1, 2, 3])
        );
        assert_eq!(tcp_ports(&lists(&[&["tcp:*:*"]]), 9), None);
        assert_eq!(tcp_ports(&lists(&[&["tcp:*:1-10"]]), 9), None);
        assert_eq!(
            tcp_ports(&lists(&[&["*:1-3"], &["*"], &["*:2-5"]]), 9),
            Some(vec![2, 3])
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for text in [
            "",
            "tcp",
            "tcp:",
            "80",
            "tcp:*",
            "tcp:localhost:80",
            "tcp:*:0",
            "tcp:*:65536",
            "*:9-8",
            "::1:80",
            "[::1]",
            "[::1:80",
            "[127.0.0.1]:80",
            "10.0.0.0/33:80",
            "10.0.0.1/8:80",
            "[::ffff:127.0.0.1]:80",
            "sctp:*:80",
            "*:*:*",
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?}: ")), "{error}");
        }
    }
}
