//! What the processes of a container's making say to each other: a hostile or broken peer must not be more than an error.

use super::Bytes;
use crate::launch::channel::{Channel, Message};
use crate::launch::handover::{Handover, VERSION};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::io::Write;
use std::os::fd::OwnedFd;

/// What init was handed once.
const HANDOVER: &str = include_str!("handover.json");

/// Bytes as messages of the channel, or as what init is handed.
pub fn protocol(data: &[u8]) {
    match data.split_first() {
        Some((b'H', rest)) => handover(rest),
        Some((b'J', rest)) => {
            // The length is right, so that the fuzzer gets into the document.
            let mut bytes = Bytes(rest);
            let program = bytes.byte().into();
            let (json, program) = bytes.0.split_at(bytes.0.len() - bytes.0.len().min(program));
            handover(&[&(json.len() as u64).to_ne_bytes(), json, program].concat());
        }
        Some((b'E', rest)) => {
            let mut document: serde_json::Value = serde_json::from_str(HANDOVER).expect("valid");
            document["proa"] = VERSION.into();
            Bytes(rest).edit(&mut document);
            let json = document.to_string().into_bytes();
            handover(&[&(json.len() as u64).to_ne_bytes(), json.as_slice()].concat());
        }
        _ => messages(data),
    }
}

fn messages(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (theirs, ours) = Channel::pair().expect("socketpair");
    let (again, back) = Channel::pair().expect("socketpair");
    while !bytes.0.is_empty() {
        let size = bytes.byte();
        let size = if size == 255 { 20_000 } else { size.into() };
        nix::unistd::write(&theirs, bytes.take(size)).expect("a message");
        let message = match ours.receive() {
            Ok(Some(message)) => message,
            // An empty message is read as the end of file.
            Ok(None) => continue,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        again.send(&message).expect("what was received can be sent");
        let received = back.receive().expect("and be received").expect("not the end");
        assert!(alike(&message, &received), "{message:?} became {received:?}");
        if let Message::Log(line) = &message {
            crate::logging::forward(line);
        }
    }
}

/// A text may have become longer by what stands for bytes that are none, and been cut.
fn alike(sent: &Message, received: &Message) -> bool {
    match (sent, received) {
        (Message::Log(sent), Message::Log(received)) | (Message::Failed(sent), Message::Failed(received)) => {
            sent.starts_with(received) && (received.len() == sent.len() || received.len() > 16 * 1024 - 4)
        }
        (sent, received) => format!("{sent:?}") == format!("{received:?}"),
    }
}

fn handover(bytes: &[u8]) {
    let memfd = |bytes: &[u8]| -> OwnedFd {
        let mut file = std::fs::File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("memfd_create"));
        file.write_all(bytes).expect("write");
        file.into()
    };
    let (plan, program) = match Handover::read(memfd(bytes)) {
        Ok(read) => read,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let written = plan.write(program.as_ref()).expect("what was read can be written");
    let (again, same) = Handover::read(written).expect("and be read");
    assert_eq!(same, program);
    assert_eq!(serde_json::json!(again), serde_json::json!(plan));
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_handover_that_is_edited_is_one() {
        serde_json::from_str::<super::Handover>(super::HANDOVER).unwrap();
    }
}
