//! The streaming server: exec, attach and port-forward, over a web socket as `kubectl` has it opened.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use proa_integration::Ctx;
use serde_json::{Value, json};

use super::super::{NO_HYBRID, V1, busybox};
use super::{Cri, Release, cri};

of_both! {
    cri_streams_exec .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_streams_attach .views(V1).seconds(120).not_for(NO_HYBRID);
    cri_forwards_ports .views(V1).seconds(120).not_for(NO_HYBRID);
}

/// The channels of `v4.channel.k8s.io` for exec and attach.
pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// A web socket (RFC 6455) whose messages begin with the byte of a channel.
pub struct Stream {
    socket: TcpStream,
    /// What has come, by channel.
    heard: [Vec<u8>; 5],
}

impl Stream {
    /// Connects to the address that the CRI has answered with.
    fn open(url: &str) -> Stream {
        let rest = url.strip_prefix("http://").expect("a plain address");
        let (host, path) = rest.split_once('/').expect("a path");
        let mut socket = TcpStream::connect(host).expect("the streaming server");
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        write!(
            socket,
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).expect("an answer");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let heard = Default::default();
        Stream { socket, heard }
    }

    pub fn send(&mut self, channel: u8, text: &str) {
        let length = text.len() + 1;
        assert!(length < 126, "longer messages have another head");
        // Whole, binary, and masked with zeros, as a client must mask.
        let mut frame = vec![0x82, 0x80 | u8::try_from(length).unwrap(), 0, 0, 0, 0, channel];
        frame.extend(text.as_bytes());
        self.socket.write_all(&frame).unwrap();
    }

    /// Takes one message; false at the end.
    fn next(&mut self) -> bool {
        let mut head = [0; 2];
        if self.socket.read_exact(&mut head).is_err() {
            return false;
        }
        let length = match head[1] & 0x7f {
            126 => {
                let mut long = [0; 2];
                self.socket.read_exact(&mut long).unwrap();
                usize::from(u16::from_be_bytes(long))
            }
            127 => panic!("a message of more than 65535 bytes"),
            short => usize::from(short),
        };
        let mut message = vec![0; length];
        self.socket.read_exact(&mut message).unwrap();
        match (head[0] & 0xf, message.split_first()) {
            // Text or binary.
            (1 | 2, Some((channel, bytes))) => self.heard[usize::from(*channel)].extend(bytes),
            (8, _) => return false,
            _ => {}
        }
        true
    }

    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(&self.heard[usize::from(channel)]).into_owned()
    }

    #[track_caller]
    pub fn expect(&mut self, channel: u8, text: &str) {
        while !self.text(channel).contains(text) {
            assert!(
                self.next(),
                "no {text:?} on channel {channel}, but {:?}",
                self.text(channel)
            );
        }
    }

    /// Takes all until the end; the exit status, which the error channel tells as an object of the API.
    pub fn exit_status(&mut self) -> i64 {
        while self.next() {}
        let status: Value =
            serde_json::from_str(&self.text(ERROR)).unwrap_or_else(|e| panic!("{e}: {:?}", self.text(ERROR)));
        if status["status"] == "Success" {
            return 0;
        }
        let code = &status["details"]["causes"][0]["message"];
        code.as_str()
            .and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("{status}"))
    }
}

impl Cri<'_> {
    pub fn stream(&mut self, method: &str, request: Value) -> Stream {
        let answer = self.call(method, request);
        Stream::open(answer["url"].as_str().expect("an address"))
    }
}

fn cri_streams_exec(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let id = cri.start(&pod, "main", &["sleep", "1000"]);

    let command = json!(["sh", "-c", "tty; read line; echo heard $line; echo aside >&2; exit 6"]);
    let request = json!({"container_id": id, "cmd": command, "stdin": true, "stdout": true, "stderr": true});
    let mut stream = cri.stream("Exec", request);
    stream.expect(STDOUT, "not a tty\n");
    stream.send(STDIN, "the line\n");
    assert_eq!(stream.exit_status(), 6);
    assert_eq!(
        (stream.text(STDOUT), stream.text(STDERR)),
        ("not a tty\nheard the line\n".into(), "aside\n".into())
    );

    let request = json!({"container_id": id, "cmd": ["sh"], "stdin": true, "stdout": true, "tty": true});
    let mut stream = cri.stream("Exec", request);
    stream.send(STDIN, "tty; echo one$((1 + 1))\n");
    stream.expect(STDOUT, "one2");
    assert!(stream.text(STDOUT).contains("/dev/pts/"), "{}", stream.text(STDOUT));
    stream.send(RESIZE, r#"{"Width":123,"Height":45}"#);
    // The new size comes by a way of its own: asked for until it is there.
    stream.send(STDIN, "until stty size | grep '45 123'; do sleep 0.05; done; exit 7\n");
    assert_eq!(stream.exit_status(), 7);
    assert!(stream.text(STDOUT).contains("\n45 123\r\n"), "{}", stream.text(STDOUT));

    // No such program: the cause comes where the status would.
    let mut stream = cri.stream(
        "Exec",
        json!({"container_id": id, "cmd": ["no-such-program"], "stdout": true}),
    );
    while stream.next() {}
    assert!(stream.text(ERROR).contains("no-such-program"), "{}", stream.text(ERROR));
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}

fn cri_streams_attach(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&json!({}));
    let script = "read line; echo heard $line; echo aside >&2; read line; exit 5";
    let id = cri.start_with(&pod, "main", &["sh", "-c", script], &json!({"stdin": true}));
    let request = json!({"container_id": id, "stdin": true, "stdout": true, "stderr": true});
    let mut stream = cri.stream("Attach", request);
    stream.send(STDIN, "the line\n");
    stream.expect(STDOUT, "heard the line\n");
    stream.expect(STDERR, "aside\n");
    stream.send(STDIN, "end\n");
    assert_eq!(cri.status(&id), 5);
    assert!(cri.log("main").contains(" stdout F heard the line\n"));

    let id = cri.start_with(&pod, "shell", &["sh"], &json!({"stdin": true, "tty": true}));
    let mut stream = cri.stream(
        "Attach",
        json!({"container_id": id, "stdin": true, "stdout": true, "tty": true}),
    );
    stream.send(STDIN, "tty; echo one$((1 + 1))\n");
    stream.expect(STDOUT, "one2");
    // Detached from and attached to again.
    stream.socket.shutdown(Shutdown::Both).unwrap();
    let mut stream = cri.stream(
        "Attach",
        json!({"container_id": id, "stdin": true, "stdout": true, "tty": true}),
    );
    stream.send(STDIN, "echo two$((1 + 1)); exit 4\n");
    stream.expect(STDOUT, "two2");
    assert_eq!(cri.status(&id), 4);
    cri.remove(&pod);
}

fn cri_forwards_ports(ctx: &Ctx, release: Release) {
    let mut cri = cri(ctx, release, &busybox(ctx));
    let pod = cri.pod(&super::own_network());
    let id = cri.start(&pod, "main", &["nc", "-ll", "-p", "8080", "-e", "cat"]);
    eprintln!(
        "listens: {:?}",
        cri.exec(
            &id,
            &["sh", "-c", "until netstat -ltn | grep :8080; do sleep 0.05; done"]
        )
    );
    let answer = cri.call("PortForward", json!({"pod_sandbox_id": pod.id, "port": [8080]}));
    let mut stream = Stream::open(&format!("{}?port=8080", answer["url"].as_str().unwrap()));
    // Channel 0 is the connection's bytes, after two that name the port.
    stream.send(STDIN, "there and back");
    stream.expect(STDIN, "there and back");
    stream.socket.shutdown(Shutdown::Both).unwrap();
    assert_eq!(cri.stop(&id, 0), 137);
    cri.remove(&pod);
}
