//! A D-Bus client, no more than systemd's manager needs: method calls with their replies, and one signal.
//!
//! Source: the D-Bus Specification 0.43, "Type System", "Message Protocol", "Authentication Protocol". A handful of calls
//! to one service needs neither an event loop nor threads, which a runtime that clones namespaces has to do without.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long systemd may take for a call or a job, as long as runc waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest message the specification allows.
const MAX_MESSAGE: usize = 128 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No bus is known.
    #[error(
        "could not detect DBUS_SESSION_BUS_ADDRESS from the environment; make sure you have installed the dbus-user-session or dbus-daemon package"
    )]
    NoAddress,
    /// The bus can't be reached.
    #[error("failed to connect to dbus at {address}: {source}")]
    Connect {
        /// The bus's address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The bus refused us.
    #[error("dbus at {address} refused authentication as uid {uid}: {answer}")]
    Auth {
        /// The bus's address.
        address: String,
        /// Who we said we are.
        uid: u32,
        /// The bus's words.
        answer: String,
    },
    /// The connection broke, or a reply took too long.
    #[error("dbus call {call}: {source}")]
    Io {
        /// The method.
        call: String,
        /// Why.
        source: std::io::Error,
    },
    /// A message was not as the specification says.
    #[error("dbus call {call}: malformed message")]
    Malformed {
        /// The method.
        call: String,
    },
    /// The service refused the call.
    #[error("dbus call {call}: {name}: {message}")]
    Remote {
        /// The method with its first argument.
        call: String,
        /// The error's name, e.g. `org.freedesktop.systemd1.UnitExists`.
        name: String,
        /// What it says.
        message: String,
    },
}

/// A value that can be sent.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Str(String),
    Path(String),
    Signature(String),
    /// The elements' signature, then the elements.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    /// A string.
    pub fn str(text: impl Into<String>) -> Self {
        Self::Str(text.into())
    }

    /// Its type, in the specification's letters.
    pub fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".into(),
            Self::Bool(_) => "b".into(),
            Self::I16(_) => "n".into(),
            Self::U16(_) => "q".into(),
            Self::I32(_) => "i".into(),
            Self::U32(_) => "u".into(),
            Self::I64(_) => "x".into(),
            Self::U64(_) => "t".into(),
            Self::Double(_) => "d".into(),
            Self::Str(_) => "s".into(),
            Self::Path(_) => "o".into(),
            Self::Signature(_) => "g".into(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(fields) => format!("({})", fields.iter().map(Self::signature).collect::<String>()),
            Self::Variant(_) => "v".into(),
        }
    }
}

/// The alignment of a type, by the first letter of its signature.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

/// Marshals values, little-endian.
#[derive(Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: usize) {
        self.align(4);
        self.0.extend(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(text.len());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn value(&mut self, value: &Value) {
        self.align(alignment(&value.signature()));
        match value {
            Value::Byte(byte) => self.0.push(*byte),
            Value::Bool(value) => self.u32((*value).into()),
            Value::I16(value) => self.0.extend(value.to_le_bytes()),
            Value::U16(value) => self.0.extend(value.to_le_bytes()),
            Value::I32(value) => self.0.extend(value.to_le_bytes()),
            Value::U32(value) => self.0.extend(value.to_le_bytes()),
            Value::I64(value) => self.0.extend(value.to_le_bytes()),
            Value::U64(value) => self.0.extend(value.to_le_bytes()),
            Value::Double(value) => self.0.extend(value.to_le_bytes()),
            Value::Str(text) | Value::Path(text) => self.text(text),
            Value::Signature(text) => self.signature(text),
            Value::Array(element, values) => self.array(element, values),
            Value::Struct(fields) => fields.iter().for_each(|field| self.value(field)),
            Value::Variant(value) => {
                self.signature(&value.signature());
                self.value(value);
            }
        }
    }

    fn array(&mut self, element: &str, values: &[Value]) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        // The padding before the first element does not count, not even of an empty array, but has to be there.
        self.align(alignment(element));
        let start = self.0.len();
        values.iter().for_each(|value| self.value(value));
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX).to_le_bytes();
        self.0[length_at..length_at + 4].copy_from_slice(&length);
    }
}

/// Unmarshals what replies hold: strings, numbers, variants of strings.
#[derive(Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, align: usize, length: usize) -> Option<&'a [u8]> {
        let start = self.at.checked_next_multiple_of(align)?;
        let slice = self.bytes.get(start..start.checked_add(length)?)?;
        self.at = start + length;
        Some(slice)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1, 1).map(|slice| slice[0])
    }

    fn u32(&mut self) -> Option<u32> {
        let bytes: [u8; 4] = self.take(4, 4)?.try_into().ok()?;
        Some(if self.big {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        let text = self.take(1, length)?;
        self.take(1, 1)?;
        String::from_utf8(text.to_vec()).ok()
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.byte()?.into();
        let text = self.take(1, length)?;
        self.take(1, 1)?;
        String::from_utf8(text.to_vec()).ok()
    }
}

/// A message received.
#[derive(Debug, Default)]
struct Message {
    kind: u8,
    big: bool,
    reply_to: u32,
    member: String,
    error: String,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    /// The arguments that are strings, object paths or numbers (as text); `None` if the message is broken. What comes
    /// after an argument of another type is left out.
    fn texts(&self) -> Option<Vec<String>> {
        let mut reader = Reader {
            bytes: &self.body,
            at: 0,
            big: self.big,
        };
        let mut all = Vec::new();
        let mut letters: Vec<char> = self.signature.chars().rev().collect();
        while let Some(letter) = letters.pop() {
            match letter {
                's' | 'o' => all.push(reader.text()?),
                'u' => all.push(reader.u32()?.to_string()),
                'v' => letters.extend(reader.signature()?.chars().rev()),
                _ => break,
            }
        }
        Some(all)
    }
}

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// A method.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub name: &'a str,
}

impl fmt::Display for Method<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.interface, self.name)
    }
}

/// A signal's arguments.
#[derive(Clone, Debug)]
struct Signal {
    member: String,
    arguments: Vec<String>,
}

/// A connection to a bus.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// How long an answer may take.
    patience: Duration,
    serial: u32,
    /// Signals that came while something else was awaited.
    signals: Vec<Signal>,
}

impl Connection {
    /// Connects to the first usable of the addresses (`unix:path=…;unix:abstract=…`) and says hello as `uid`.
    pub fn open(address: &str, uid: u32) -> Result<Self, Error> {
        let failed = |source| Error::Connect {
            address: address.to_owned(),
            source,
        };
        let mut last = std::io::Error::from(ErrorKind::AddrNotAvailable);
        for one in address.split(';') {
            match dial(one) {
                Ok(stream) => return Self::over(stream, address, uid, PATIENCE),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// Says hello on a connected socket.
    fn over(stream: UnixStream, address: &str, uid: u32, patience: Duration) -> Result<Self, Error> {
        let mut connection = Self {
            stream,
            patience,
            serial: 0,
            signals: Vec::new(),
        };
        connection.authenticate(address, uid)?;
        let bus = "org.freedesktop.DBus";
        let hello = Method {
            destination: bus,
            path: "/org/freedesktop/DBus",
            interface: bus,
            name: "Hello",
        };
        connection.call(hello, &[])?;
        Ok(connection)
    }

    /// "EXTERNAL": the kernel vouches for the uid.
    fn authenticate(&mut self, address: &str, uid: u32) -> Result<(), Error> {
        let failed = |source| Error::Connect {
            address: address.to_owned(),
            source,
        };
        // A bus that does not read must not hold us up any more than one that does not answer.
        self.stream.set_write_timeout(Some(self.patience)).map_err(failed)?;
        let give_up = Instant::now() + self.patience;
        let hex: String = uid.to_string().bytes().map(|byte| format!("{byte:02x}")).collect();
        self.stream
            .write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())
            .map_err(failed)?;
        let mut answer = Vec::new();
        // A line of the bus's, and nothing after it before we begin.
        while !answer.ends_with(b"\r\n") && answer.len() < 4096 {
            let mut byte = [0];
            self.read(&mut byte, give_up).map_err(failed)?;
            answer.push(byte[0]);
        }
        if !answer.starts_with(b"OK") {
            let answer = String::from_utf8_lossy(&answer).trim_end().to_owned();
            return Err(Error::Auth {
                address: address.to_owned(),
                uid,
                answer,
            });
        }
        self.stream.write_all(b"BEGIN\r\n").map_err(failed)
    }

    /// Calls a method and returns what of its reply are strings, paths and numbers.
    pub fn call(&mut self, method: Method<'_>, arguments: &[Value]) -> Result<Vec<String>, Error> {
        self.serial += 1;
        let serial = self.serial;
        let name = match arguments.first() {
            Some(Value::Str(first)) => format!("{method}({first})"),
            _ => method.to_string(),
        };
        let message = encode(method, serial, arguments);
        self.stream.write_all(&message).map_err(|source| Error::Io {
            call: name.clone(),
            source,
        })?;
        let give_up = Instant::now() + self.patience;
        loop {
            let message = self.receive(&name, give_up)?;
            let malformed = || Error::Malformed { call: name.clone() };
            match message.kind {
                METHOD_RETURN if message.reply_to == serial => return message.texts().ok_or_else(malformed),
                ERROR if message.reply_to == serial => {
                    let text = message
                        .texts()
                        .and_then(|texts| texts.into_iter().next())
                        .unwrap_or_default();
                    return Err(Error::Remote {
                        call: name,
                        name: message.error,
                        message: text,
                    });
                }
                SIGNAL => self.keep(message),
                _ => {}
            }
        }
    }

    /// Waits for a signal `member` of which `wanted` accepts the arguments.
    pub fn wait(&mut self, member: &str, wanted: impl Fn(&[String]) -> bool) -> Result<Vec<String>, Error> {
        let give_up = Instant::now() + self.patience;
        loop {
            let found = self
                .signals
                .iter()
                .position(|signal| signal.member == member && wanted(&signal.arguments));
            if let Some(at) = found {
                return Ok(self.signals.swap_remove(at).arguments);
            }
            self.signals.clear();
            let message = self.receive(member, give_up)?;
            if message.kind == SIGNAL {
                self.keep(message);
            }
        }
    }

    fn keep(&mut self, message: Message) {
        if let Some(arguments) = message.texts() {
            self.signals.push(Signal {
                member: message.member,
                arguments,
            });
        }
    }

    fn receive(&mut self, call: &str, give_up: Instant) -> Result<Message, Error> {
        let io = |source| Error::Io {
            call: call.to_owned(),
            source,
        };
        let malformed = || Error::Malformed { call: call.to_owned() };
        let mut fixed = [0u8; 16];
        self.read(&mut fixed, give_up).map_err(io)?;
        let (body, fields) = lengths(&fixed).ok_or_else(malformed)?;
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.read(&mut rest, give_up).map_err(io)?;
        decode(&fixed, fields, &rest).ok_or_else(malformed)
    }

    /// Fills `buffer`, however many reads that takes, before `give_up`.
    fn read(&mut self, buffer: &mut [u8], give_up: Instant) -> std::io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The lengths of the body and of the header fields, from a message's first 16 bytes.
fn lengths(fixed: &[u8; 16]) -> Option<(usize, usize)> {
    let mut reader = Reader {
        bytes: fixed,
        at: 4,
        big: fixed[0] == b'B',
    };
    let body = usize::try_from(reader.u32()?).ok()?;
    reader.u32()?;
    let fields = usize::try_from(reader.u32()?).ok()?;
    (body <= MAX_MESSAGE && fields <= MAX_MESSAGE).then_some((body, fields))
}

fn decode(fixed: &[u8; 16], fields: usize, rest: &[u8]) -> Option<Message> {
    let big = fixed[0] == b'B';
    let mut message = Message {
        kind: fixed[1],
        big,
        ..Message::default()
    };
    // Offsets count from the message's start for alignment; 16 is a multiple of every one.
    let mut reader = Reader {
        bytes: rest.get(..fields)?,
        at: 0,
        big,
    };
    while reader.at < fields {
        let code = *reader.take(8, 1)?.first()?;
        let signature = reader.signature()?;
        match (code, signature.as_str()) {
            (3, "s") => message.member = reader.text()?,
            (4, "s") => message.error = reader.text()?,
            (5, "u") => message.reply_to = reader.u32()?,
            (8, "g") => message.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
    }
    message.body = rest.get(fields.next_multiple_of(8)..)?.to_vec();
    Some(message)
}

fn encode(method: Method<'_>, serial: u32, arguments: &[Value]) -> Vec<u8> {
    let mut body = Writer::default();
    arguments.iter().for_each(|argument| body.value(argument));
    let mut message = Writer(vec![b'l', METHOD_CALL, 0, 1]);
    message.u32(body.0.len());
    message.value(&Value::U32(serial));
    let field = |code, value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
    let mut fields = vec![
        field(1, Value::Path(method.path.to_owned())),
        field(2, Value::str(method.interface)),
        field(3, Value::str(method.name)),
        field(6, Value::str(method.destination)),
    ];
    if !arguments.is_empty() {
        let signature = arguments.iter().map(Value::signature).collect();
        fields.push(field(8, Value::Signature(signature)));
    }
    message.array("(yv)", &fields);
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// Connects to one address of the specification's "Server Addresses".
fn dial(address: &str) -> std::io::Result<UnixStream> {
    let invalid = || std::io::Error::from(ErrorKind::Unsupported);
    let (transport, options) = address.split_once(':').ok_or_else(invalid)?;
    let mut options = options.split(',').filter_map(|option| option.split_once('='));
    match options.find(|(key, _)| *key == "path" || *key == "abstract") {
        Some(("path", value)) if transport == "unix" => UnixStream::connect(PathBuf::from(unescape(value))),
        Some((_, value)) if transport == "unix" => {
            UnixStream::connect_addr(&SocketAddr::from_abstract_name(unescape(value))?)
        }
        _ => Err(invalid()),
    }
}

/// Undoes `%2f` in an address.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail
            .get(..2)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) if *first == b'%' => {
                out.push(code);
                rest = &tail[2..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method<'static> = Method {
        destination: "a.b",
        path: "/a/b",
        interface: "a.b",
        name: "Call",
    };

    fn roundtrip(arguments: &[Value]) -> Message {
        let bytes = encode(METHOD, 7, arguments);
        let fixed: [u8; 16] = bytes[..16].try_into().unwrap();
        let (body, fields) = lengths(&fixed).unwrap();
        assert_eq!(16 + fields.next_multiple_of(8) + body, bytes.len());
        decode(&fixed, fields, &bytes[16..]).unwrap()
    }

    #[test]
    fn messages() {
        let message = roundtrip(&[
            Value::str("x.scope"),
            Value::U32(5),
            Value::Variant(Box::new(Value::str("v"))),
        ]);
        assert_eq!((message.kind, message.member.as_str()), (METHOD_CALL, "Call"));
        assert_eq!(message.signature, "suv");
        assert_eq!(message.texts().unwrap(), ["x.scope", "5", "v"]);
    }

    #[test]
    fn properties_are_aligned() {
        let property = |name: &str, value| Value::Struct(vec![Value::str(name), Value::Variant(Box::new(value))]);
        let array = Value::Array(
            "(sv)".into(),
            vec![property("A", Value::U64(1)), property("B", Value::Bool(true))],
        );
        let mut writer = Writer::default();
        writer.value(&array);
        let expected: Vec<u8> = [
            &[44, 0, 0, 0, 0, 0, 0, 0][..],
            &[
                1, 0, 0, 0, b'A', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            ],
            &[1, 0, 0, 0, b'B', 0, 1, b'b', 0, 0, 0, 0, 1, 0, 0, 0],
        ]
        .concat();
        assert_eq!(writer.0[8..], expected[8..]);
        assert_eq!(usize::from(writer.0[0]), expected.len() - 8);
    }

    #[test]
    fn an_empty_array_is_padded() {
        let mut writer = Writer::default();
        writer.value(&Value::Array("(ss)".into(), Vec::new()));
        assert_eq!(writer.0, [0; 8]);
    }

    #[test]
    fn broken_messages_are_no_panic() {
        let bytes = encode(METHOD, 7, &[Value::str("x")]);
        let fixed: [u8; 16] = bytes[..16].try_into().unwrap();
        let (_, fields) = lengths(&fixed).unwrap();
        for cut in 16..bytes.len() {
            if let Some(message) = decode(&fixed, fields, &bytes[16..cut]) {
                let _texts = message.texts();
            }
        }
        let mut huge = fixed;
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(lengths(&huge).is_none());
    }

    const OK: &[u8] = b"OK 1234deadbeef\r\n";

    /// A message of the bus's: its kind, the serial it replies to, a member or an error's name, its arguments.
    fn answer(kind: u8, reply_to: u32, name: &str, arguments: &[Value]) -> Vec<u8> {
        let mut body = Writer::default();
        arguments.iter().for_each(|argument| body.value(argument));
        let mut message = Writer(vec![b'l', kind, 0, 1]);
        message.u32(body.0.len());
        message.u32(1);
        let field = |code, value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
        let signature = arguments.iter().map(Value::signature).collect();
        let mut fields = vec![field(8, Value::Signature(signature))];
        match kind {
            SIGNAL => fields.push(field(3, Value::str(name))),
            ERROR => fields.extend([field(4, Value::str(name)), field(5, Value::U32(reply_to))]),
            _ => fields.push(field(5, Value::U32(reply_to))),
        }
        message.array("(yv)", &fields);
        message.align(8);
        message.0.extend(body.0);
        message.0
    }

    fn hello() -> Vec<u8> {
        answer(METHOD_RETURN, 1, "", &[Value::str(":1.5")])
    }

    /// A client of a bus that says all of `said`, in pieces of `piece` bytes, and then nothing or hangs up.
    fn client(said: &[&[u8]], piece: usize, hang_up: bool) -> Result<Connection, Error> {
        let (ours, mut bus) = UnixStream::pair().unwrap();
        let said = said.concat();
        let patience = Duration::from_millis(200);
        std::thread::spawn(move || {
            for piece in said.chunks(piece) {
                if bus.write_all(piece).is_err() {
                    return;
                }
                if piece.len() == 1 {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            if hang_up {
                bus.shutdown(std::net::Shutdown::Write).unwrap();
            }
            // What we say is read until we have gone.
            while matches!(bus.read(&mut [0; 4096]), Ok(1..)) {}
        });
        Connection::over(ours, "unix:path=/bus", 0, patience)
    }

    fn kind_of(error: &Error) -> Option<ErrorKind> {
        match error {
            Error::Connect { source, .. } | Error::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    #[test]
    fn a_bus_that_refuses_us() {
        let error = client(&[b"REJECTED EXTERNAL\r\n"], 4096, false).unwrap_err();
        assert!(
            matches!(&error, Error::Auth { answer, uid: 0, .. } if answer == "REJECTED EXTERNAL"),
            "{error}"
        );
        let endless = vec![b'x'; 10_000];
        assert!(matches!(client(&[&endless], 4096, false), Err(Error::Auth { .. })));
        let error = client(&[b"OK 12"], 4096, true).unwrap_err();
        assert_eq!(kind_of(&error), Some(ErrorKind::UnexpectedEof), "{error}");
    }

    #[test]
    fn a_bus_that_takes_too_long() {
        for said in [&[][..], &[OK], &[OK, &hello()[..20]]] {
            let begun = Instant::now();
            let error = client(said, 4096, false).unwrap_err();
            assert_eq!(kind_of(&error), Some(ErrorKind::TimedOut), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
        // A byte now and then is no answer either.
        let begun = Instant::now();
        let error = client(&[OK, &vec![b'l'; 4096]], 1, false).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5), "{error}");
    }

    #[test]
    fn answers_in_pieces_and_out_of_order() {
        let removed = |id, result| {
            let arguments = [
                Value::U32(id),
                Value::Path(format!("/job/{id}")),
                Value::str("x.scope"),
                Value::str(result),
            ];
            answer(SIGNAL, 0, "JobRemoved", &arguments)
        };
        let said = [
            OK.to_vec(),
            hello(),
            answer(SIGNAL, 0, "NameAcquired", &[Value::str(":1.5")]),
            removed(6, "failed"),
            removed(7, "done"),
            // Somebody else's, then ours.
            answer(METHOD_RETURN, 9, "", &[Value::str("no")]),
            answer(METHOD_RETURN, 2, "", &[Value::Path("/job/7".into())]),
        ];
        let said: Vec<&[u8]> = said.iter().map(Vec::as_slice).collect();
        let mut bus = client(&said, 7, false).unwrap();
        let job = bus.call(METHOD, &[]).unwrap();
        assert_eq!(job, ["/job/7"]);
        let arguments = bus
            .wait("JobRemoved", |arguments| arguments.get(1) == job.first())
            .unwrap();
        assert_eq!(arguments, ["7", "/job/7", "x.scope", "done"]);
        let error = bus.wait("JobRemoved", |arguments| arguments.is_empty()).unwrap_err();
        assert_eq!(kind_of(&error), Some(ErrorKind::TimedOut), "{error}");
    }

    #[test]
    fn errors_have_the_calls_object() {
        let refused = answer(
            ERROR,
            2,
            "org.freedesktop.systemd1.UnitExists",
            &[Value::str("it is there")],
        );
        let mut bus = client(&[OK, &hello(), &refused], 4096, false).unwrap();
        let error = bus.call(METHOD, &[Value::str("x.scope")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "dbus call a.b.Call(x.scope): org.freedesktop.systemd1.UnitExists: it is there"
        );
        // Without a text, and with another argument in its place.
        for arguments in [&[][..], &[Value::U64(1)]] {
            let refused = answer(ERROR, 2, "e.f", arguments);
            let mut bus = client(&[OK, &hello(), &refused], 4096, false).unwrap();
            assert!(matches!(bus.call(METHOD, &[]), Err(Error::Remote { name, .. }) if name == "e.f"));
        }
    }

    #[test]
    fn a_bus_that_goes_or_talks_nonsense() {
        let mut bus = client(&[OK, &hello()], 4096, true).unwrap();
        let error = bus.call(METHOD, &[]).unwrap_err();
        assert_eq!(kind_of(&error), Some(ErrorKind::UnexpectedEof), "{error}");
        let mut broken = answer(METHOD_RETURN, 2, "", &[Value::str("text")]);
        let at = broken.len() - 9;
        broken[at] = 0xff;
        for nonsense in [broken, vec![0xff; 64], vec![b'l'; 64], vec![0; 64]] {
            // All zeros is a message without meaning, after which nothing comes.
            let mut bus = client(&[OK, &hello(), &nonsense], 4096, true).unwrap();
            let error = bus.call(METHOD, &[]).unwrap_err();
            assert!(
                matches!(error, Error::Malformed { .. }) || kind_of(&error) == Some(ErrorKind::UnexpectedEof),
                "{error}"
            );
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(unescape("/run/user%2f1%zz"), "/run/user/1%zz");
        assert!(dial("tcp:host=x").is_err());
        assert!(dial("nonsense").is_err());
    }
}
