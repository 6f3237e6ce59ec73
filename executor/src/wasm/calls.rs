//! The socket calls of this process, in the place of the C library's: where a guest's policy is enforced.
//!
//! The dynamic linker resolves a name for every library in the executable first, dlopen(3)ed ones included. So the functions
//! here, which the executable exports (build.rs), are what the engine calls, as long as it does not make the system calls
//! itself; [`arm`] looks whether it is so, as a policy that nobody asks would be worse than none. Until then, and for
//! everybody else, they are the calls.
//!
//! The C library's own resolver calls its own functions and is not seen here: see [`super::names`].
#![allow(unsafe_code)]

use crate::policy::Network;
use crate::policy::rule::Protocol;
use libc::{c_int, c_void, mmsghdr, msghdr, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};
use std::ffi::CStr;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;

/// The guest's policy, once it is armed.
static POLICY: OnceLock<Network> = OnceLock::new();

/// From now on the sockets of this process may do what `policy` allows, for good. The error is the name of a call that would
/// not be asked here.
pub fn arm(policy: Network) -> Result<(), String> {
    are_called(&[
        (c"socket", socket as *const c_void),
        (c"bind", bind as *const c_void),
        (c"listen", listen as *const c_void),
        (c"connect", connect as *const c_void),
        (c"sendto", sendto as *const c_void),
        (c"sendmsg", sendmsg as *const c_void),
        (c"sendmmsg", sendmmsg as *const c_void),
    ])?;
    POLICY.set(policy).map_err(|_| "it is in force already".to_owned())
}

/// Whether these functions of this executable are what libraries find by these names. The error is the first one that is not.
pub(super) fn are_called(functions: &[(&CStr, *const c_void)]) -> Result<(), String> {
    for (name, here) in functions {
        // SAFETY: looks up a name, which is a string, in the scope that every library is resolved in.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        if found.cast_const() != *here {
            return Err(format!(
                "{} of this executable is not what libraries call",
                name.to_string_lossy()
            ));
        }
    }
    Ok(())
}

/// What the policy is asked.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Listen,
    Connect,
}

/// Whether the policy, if there is one, allows `fd` this address. What can't be read or is of no known kind is not allowed.
///
/// # Safety
/// `address` points to `length` bytes, or is null.
unsafe fn allowed(fd: c_int, direction: Direction, address: *const sockaddr, length: socklen_t) -> bool {
    let Some(policy) = POLICY.get() else { return true };
    let mut copy: sockaddr_storage = no_address();
    let length = (length as usize).min(size_of::<sockaddr_storage>());
    if address.is_null() {
        return false;
    }
    // SAFETY: as promised, so many bytes can be read; and they fit. The copy is what is looked at.
    unsafe { std::ptr::copy_nonoverlapping(address.cast::<u8>(), (&raw mut copy).cast::<u8>(), length) };
    match (protocol(fd), internet(&copy, length)) {
        (Some(protocol), Some(address)) => match direction {
            Direction::Listen => policy.may_listen(protocol, address),
            Direction::Connect => policy.may_connect(protocol, address),
        },
        _ => false,
    }
}

fn no_address() -> sockaddr_storage {
    // SAFETY: a structure of integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// What the socket speaks, if it is one of the two that are known: not raw IP, nor anything that came from elsewhere.
fn protocol(fd: c_int) -> Option<Protocol> {
    match (option(fd, libc::SO_DOMAIN)?, option(fd, libc::SO_PROTOCOL)?) {
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_TCP) => Some(Protocol::Tcp),
        (libc::AF_INET | libc::AF_INET6, libc::IPPROTO_UDP) => Some(Protocol::Udp),
        _ => None,
    }
}

fn option(fd: c_int, name: c_int) -> Option<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
    (result == 0).then_some(value)
}

fn internet(address: &sockaddr_storage, length: usize) -> Option<SocketAddr> {
    match c_int::from(address.ss_family) {
        libc::AF_INET if length >= size_of::<sockaddr_in>() => {
            // SAFETY: the storage is larger than this and aligned for it; any bytes are a value.
            let address = unsafe { &*(&raw const *address).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
        }
        libc::AF_INET6 if length >= MIN_INET6 => {
            // SAFETY: as above; what the caller left out is zero.
            let address = unsafe { &*(&raw const *address).cast::<sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin6_port)))
        }
        _ => None,
    }
}

/// `SIN6_LEN_RFC2133`: an IPv6 address without its scope is one to the kernel, too.
const MIN_INET6: usize = 24;

fn refuse() -> c_int {
    nix::errno::Errno::EACCES.set();
    -1
}

/// As socket(2); under a policy, only for TCP and UDP.
///
/// # Safety
/// None that the system call does not have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    let kind_alone = kind & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    let known = matches!(domain, libc::AF_INET | libc::AF_INET6)
        && matches!(
            (kind_alone, protocol),
            (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) | (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP)
        );
    if POLICY.get().is_some() && !known {
        return refuse();
    }
    // SAFETY: takes integers.
    unsafe { libc::syscall(libc::SYS_socket, domain, kind, protocol) as c_int }
}

/// As bind(2), to what the policy allows to listen on.
///
/// # Safety
/// As bind(2): `address` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: promised by the caller.
    match unsafe { allowed(fd, Direction::Listen, address, length) } {
        // SAFETY: as above.
        true => unsafe { libc::syscall(libc::SYS_bind, fd, address, length) as c_int },
        false => refuse(),
    }
}

/// As listen(2). A socket that is not bound is by this, to every address and a port of the kernel's choice.
///
/// # Safety
/// None that the system call does not have.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    if POLICY.get().is_some() {
        let mut address = no_address();
        let mut length = size_of::<sockaddr_storage>() as socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `address`.
        let known = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut length) } == 0;
        // SAFETY: a local of that size.
        if !known || !unsafe { allowed(fd, Direction::Listen, (&raw const address).cast(), length) } {
            return refuse();
        }
    }
    // SAFETY: takes integers.
    unsafe { libc::syscall(libc::SYS_listen, fd, backlog) as c_int }
}

/// As connect(2), to what the policy allows.
///
/// # Safety
/// As connect(2): `address` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    // SAFETY: promised by the caller.
    match unsafe { allowed(fd, Direction::Connect, address, length) } {
        // SAFETY: as above.
        true => unsafe { libc::syscall(libc::SYS_connect, fd, address, length) as c_int },
        false => refuse(),
    }
}

/// As sendto(2): without an address, over what connect(2) or accept(2) made; else to what the policy allows.
///
/// # Safety
/// As sendto(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    data: *const c_void,
    size: usize,
    flags: c_int,
    address: *const sockaddr,
    length: socklen_t,
) -> isize {
    // SAFETY: promised by the caller.
    if !address.is_null() && !unsafe { allowed(fd, Direction::Connect, address, length) } {
        return refuse() as isize;
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_sendto, fd, data, size, flags, address, length) as isize }
}

/// As sendmsg(2); see [`sendto`].
///
/// # Safety
/// As sendmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> isize {
    // SAFETY: promised by the caller.
    if !unsafe { message_allowed(fd, message) } {
        return refuse() as isize;
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_sendmsg, fd, message, flags) as isize }
}

/// As sendmmsg(2); see [`sendto`]. Nothing is sent if one of the messages is refused.
///
/// # Safety
/// As sendmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: libc::c_uint, flags: c_int) -> c_int {
    if POLICY.get().is_some() && !messages.is_null() {
        for index in 0..count as usize {
            // SAFETY: promised by the caller: `count` messages.
            if !unsafe { message_allowed(fd, &raw const (*messages.add(index)).msg_hdr) } {
                return refuse();
            }
        }
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_sendmmsg, fd, messages, count, flags) as c_int }
}

/// Whether a message has no address, or one that the policy allows.
///
/// # Safety
/// `message` points to a message, or is null.
unsafe fn message_allowed(fd: c_int, message: *const msghdr) -> bool {
    if POLICY.get().is_none() || message.is_null() {
        return true;
    }
    // SAFETY: promised by the caller.
    let (name, length) = unsafe { ((*message).msg_name, (*message).msg_namelen) };
    // SAFETY: promised by the caller.
    name.is_null() || length == 0 || unsafe { allowed(fd, Direction::Connect, name.cast(), length) }
}
