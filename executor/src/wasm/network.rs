//! What the guest's sockets may do: the policy's rules are asked on every call that the engine makes ([`super::calls`]), and
//! the kernel is told what it can be told: Landlock knows ports of TCP (Linux 6.7), and neither addresses nor UDP. That is a
//! second line, for an engine that is not what it was; the rules don't depend on it.

use super::{calls, names};
use crate::policy::rule::{Network, tcp_ports};
use crate::{Error, Guest};
use landlock::{ABI, Access, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr};

/// The most ports that are told the kernel one by one; rules with more allow too much for that to matter.
const PORTS_MAX: usize = 256;
/// Where nameservers are asked over TCP, if an answer is too long for a datagram.
const DOMAIN: u16 = 53;

/// Whether nameservers may be asked for the guest.
pub fn asks_nameservers(guest: &Guest) -> bool {
    guest
        .policy
        .as_ref()
        .is_none_or(|policy| policy.network.may_ask_nameservers())
}

/// From now on the sockets of this process do what the policy allows.
pub fn enforce(guest: &Guest) -> Result<(), Error> {
    let Some(network) = guest.policy.as_ref().map(|policy| &policy.network) else {
        return Ok(());
    };
    if !network.restricts() {
        return Ok(());
    }
    if network.restricts_connect() && network.may_ask_nameservers() {
        names::keep_nameservers()?;
    }
    calls::arm(network.clone()).map_err(unenforceable)?;
    tell_kernel(network).map_err(|error| unenforceable(error.to_string()))
}

fn unenforceable(problem: String) -> Error {
    Error::Unenforceable {
        policy: "proa.wasm/listen and proa.wasm/connect",
        problem,
    }
}

fn tell_kernel(network: &Network) -> Result<(), landlock::RulesetError> {
    let listen = tcp_ports(&network.listen, PORTS_MAX);
    let mut connect = tcp_ports(&network.connect, PORTS_MAX);
    if let Some(ports) = connect.as_mut().filter(|_| network.may_ask_nameservers()) {
        ports.push(DOMAIN);
    }
    let told = [(AccessNet::BindTcp, listen), (AccessNet::ConnectTcp, connect)];
    let handled = told
        .iter()
        .filter(|(_, ports)| ports.is_some())
        .map(|(access, _)| *access);
    let handled: landlock::BitFlags<AccessNet> = handled.collect();
    if handled.is_empty() {
        return Ok(());
    }
    debug_assert!(AccessNet::from_all(ABI::V4).contains(handled));
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let mut ruleset = ruleset.handle_access(handled)?.create()?;
    for (access, ports) in told {
        for port in ports.into_iter().flatten() {
            ruleset = ruleset.add_rule(NetPort::new(port, access))?;
        }
    }
    ruleset.restrict_self().map(drop)
}
