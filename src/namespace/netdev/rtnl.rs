//! The three requests of rtnetlink(7) that moving a network device takes.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::{AddressFamily as Family, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// How often a list that changed while it was read is read again.
const ATTEMPTS: u32 = 16;

/// An address of a network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device's own.
    local: IpAddr,
    /// The other end's on a point-to-point link, else the device's own.
    peer: IpAddr,
    broadcast: Option<Ipv4Addr>,
    /// How many bits of `peer` are the network's.
    prefix: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.local, self.prefix)
    }
}

/// A netlink socket in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Opens one in the current network namespace.
    pub fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        // To the kernel, so that nobody else in the namespace can answer in its place.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Moves the device `index` to `namespace` and names it `name` there, both or neither.
    pub fn move_link(&self, index: u32, name: &str, namespace: BorrowedFd<'_>) -> Result<(), Errno> {
        let message = RouteNetlinkMessage::SetLink(moved_link(index, name, namespace.as_raw_fd()));
        self.ask(message, NLM_F_ACK, |_| {}).map(drop)
    }

    /// The addresses of the device `index` that move with it. EAGAIN if they change all the time.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>, Errno> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
            let consistent = self.ask(all, NLM_F_DUMP, |answer| {
                if let RouteNetlinkMessage::NewAddress(address) = answer {
                    found.extend(kept_address(&address, index));
                }
            })?;
            if consistent {
                return Ok(found);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Adds `address` to the device `index`. EEXIST if it is there.
    pub fn add_address(&self, index: u32, address: &Address) -> Result<(), Errno> {
        let message = RouteNetlinkMessage::NewAddress(added_address(index, address));
        self.ask(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, |_| {})
            .map(drop)
    }

    /// Sends a request and reads the answer to its end. Whether it is consistent: false if what is listed changed meanwhile.
    fn ask(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<bool, Errno> {
        let socket = self.0.as_raw_fd();
        send(socket, &encode(request, NLM_F_REQUEST | flags), MsgFlags::empty())?;
        let mut consistent = true;
        // The kernel puts at most this much into one datagram, net/netlink/af_netlink.c, netlink_dump().
        let mut buffer = vec![0; 32 << 10];
        loop {
            let size = recv(socket, &mut buffer, MsgFlags::MSG_TRUNC)?;
            let mut rest = buffer.get(..size).ok_or(Errno::EMSGSIZE)?;
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|_| Errno::EBADMSG)?;
                let next = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => each(answer),
                    NetlinkPayload::Done(done) => return outcome(done.code).map(|()| consistent),
                    NetlinkPayload::Error(error) => return outcome(error.raw_code()).map(|()| consistent),
                    NetlinkPayload::Overrun(_) => return Err(Errno::EOVERFLOW),
                    _ => {}
                }
            }
        }
    }
}

fn encode(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// A negative errno, or success.
fn outcome(code: i32) -> Result<(), Errno> {
    match code {
        0 => Ok(()),
        code => Err(Errno::from_raw(-code)),
    }
}

fn moved_link(index: u32, name: &str, namespace: RawFd) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::NetNsFd(namespace)];
    link
}

fn added_address(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address.local {
        IpAddr::V4(_) => Family::Inet,
        IpAddr::V6(_) => Family::Inet6,
    };
    message.header.prefix_len = address.prefix;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.local),
        AddressAttribute::Address(address.peer),
    ];
    // No label: it has the device's old name in it.
    message
        .attributes
        .extend(address.broadcast.map(AddressAttribute::Broadcast));
    message
}

/// `message` as an address, if it is one that moves with the device `index`: of global scope, and permanent, since the others
/// were learnt from a network that is left behind (config-linux.md#network-devices).
fn kept_address(message: &AddressMessage, index: u32) -> Option<Address> {
    let (mut local, mut peer, mut broadcast) = (None, None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Broadcast(address) => broadcast = Some(*address),
            // All of them, of which the header has the first eight.
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let kept = message.header.index == index
        && message.header.scope == AddressScope::Universe
        && flags.contains(AddressFlags::Permanent);
    // IPv6 names no local address where there is no peer.
    let local = local.or(peer).filter(|_| kept)?;
    Some(Address {
        local,
        peer: peer.unwrap_or(local),
        broadcast,
        prefix: message.header.prefix_len,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::address::AddressHeaderFlags;

    /// An address as the kernel lists it.
    fn listed(attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = Family::Inet;
        message.header.prefix_len = 24;
        message.header.index = 3;
        message.header.flags = AddressHeaderFlags::Permanent;
        message.attributes = attributes;
        message
    }

    fn local() -> AddressAttribute {
        AddressAttribute::Local([10, 0, 0, 2].into())
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_move_names_the_device_its_new_name_and_its_namespace() {
        let expected = [
            52, 0, 0, 0, 19, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr: RTM_SETLINK, REQUEST | ACK
            0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ifinfomsg: index 7
            9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0, // IFLA_IFNAME, padded
            8, 0, 28, 0, 42, 0, 0, 0, // IFLA_NET_NS_FD
        ];
        let message = RouteNetlinkMessage::SetLink(moved_link(7, "eth0", 42));
        // ifi_type, in the middle of ifinfomsg, is not looked at.
        let mut bytes = encode(message, NLM_F_REQUEST | NLM_F_ACK);
        bytes[18..20].fill(0);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn an_address_that_is_added_is_the_one_that_was_listed() {
        for (local, peer, broadcast, prefix) in [
            ("10.0.0.2", "10.0.0.2", Some("10.0.0.255"), 24),
            ("10.0.0.2", "10.0.0.9", None, 32),
            ("2001:db8::2", "2001:db8::2", None, 64),
        ] {
            let address = Address {
                local: local.parse().unwrap(),
                peer: peer.parse().unwrap(),
                broadcast: broadcast.map(|one| one.parse().unwrap()),
                prefix,
            };
            let mut message = added_address(3, &address);
            message.header.flags = AddressHeaderFlags::Permanent;
            assert_eq!(kept_address(&message, 3), Some(address));
        }
    }

    #[test]
    fn ipv6_without_a_peer_has_no_local_address() {
        let ip = IpAddr::from([0xfd; 16]);
        let found = kept_address(&listed(vec![AddressAttribute::Address(ip)]), 3).unwrap();
        assert_eq!((found.local, found.peer), (ip, ip));
    }

    #[test]
    fn only_permanent_global_addresses_of_the_device_are_kept() {
        let global = listed(vec![local()]);
        assert!(kept_address(&global, 3).is_some());
        assert_eq!(kept_address(&global, 4), None);
        let mut scoped = global.clone();
        scoped.header.scope = AddressScope::Link;
        assert_eq!(kept_address(&scoped, 3), None);
        let mut learnt = global.clone();
        learnt.header.flags = AddressHeaderFlags::empty();
        assert_eq!(kept_address(&learnt, 3), None);
        // The attribute has the last word.
        let flags = AddressAttribute::Flags(AddressFlags::Managetempaddr);
        assert_eq!(kept_address(&listed(vec![local(), flags]), 3), None);
        assert_eq!(kept_address(&listed(vec![]), 3), None);
    }

    #[test]
    fn an_outcome_is_an_errno_or_success() {
        assert_eq!(outcome(0), Ok(()));
        assert_eq!(outcome(-libc::EEXIST), Err(Errno::EEXIST));
    }
}
