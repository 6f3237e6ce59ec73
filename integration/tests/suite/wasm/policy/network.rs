//! WasmEdge's socket extension, and what `proa.wasm/listen`, `proa.wasm/connect` and the file's `wasm.network` allow of it.

use proa_integration::{Bundle, Container, Ctx, tests};

use super::names::{nameserver, resolving};
use super::{annotate, configuration, first_net, net, refused, run_under};

tests! {
    an_http_server_answers_on_loopback .once().only_proa();
    datagrams_are_answered .once().only_proa();
    without_rules_everything_is_allowed .once().only_proa();
    only_what_the_rules_say_can_be_listened_on .once().only_proa();
    only_what_the_rules_say_can_be_connected_to .once().only_proa();
    an_empty_list_allows_nothing .once().only_proa();
    what_the_rules_allow_works .once().only_proa();
    names_are_asked_of_nameservers_by_rule .once().only_proa();
    the_file_and_the_annotation_both_have_to_allow_it .once().only_proa();
    a_rule_that_is_none_is_refused_by_name .once().only_proa();
    exec_is_held_to_the_same_rules .once().only_proa();
    rules_hold_without_landlock .once().only_proa();
}

/// The words of net.c for what the policy forbids: `__WASI_ERRNO_ACCES`.
const DENIED: &str = "error 2";
/// And for what nobody listens on: `__WASI_ERRNO_CONNREFUSED`.
const NOBODY: &str = "error 14";

/// What the guest says to these arguments, without the name of the verb.
fn says(ctx: &Ctx, bundle: &Bundle, args: &[&str]) -> String {
    let mut all = vec!["/module.wasm"];
    all.extend(args);
    bundle.args(&all);
    ctx.run(bundle).ok().text().to_owned()
}

/// A guest's arguments, one a word.
fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// Ends a server that would serve more: with the first process of its pid namespace a client would end that is not done.
fn end(container: &Container<'_>) {
    container.kill("KILL").stopped();
    container.delete();
}

fn an_http_server_answers_on_loopback(ctx: &Ctx) {
    for (bundle, address) in [
        (first_net(ctx, &[]), "127.0.0.1"),
        (net(ctx, &[]), "127.0.0.1"),
        (net(ctx, &[]), "::1"),
    ] {
        bundle.args(&["/module.wasm", "serve", "9", address, "8080"]);
        let container = ctx.start(&bundle);
        container.says("listen: ok");
        for _ in 0..2 {
            let out = container.exec(&["/module.wasm", "get", address, "8080"]);
            assert!(out.ok().stdout.contains("HTTP/1.1 200 OK"), "{out:?}");
            assert!(out.stdout.contains("you said GET /x HTTP/1.0"), "{out:?}");
        }
        end(&container);
    }
}

fn datagrams_are_answered(ctx: &Ctx) {
    let bundle = net(ctx, &[]);
    bundle.args(&["/module.wasm", "echo", "9", "127.0.0.1", "5000"]);
    let container = ctx.start(&bundle);
    container.says("bind: ok");
    let out = container.exec(&["/module.wasm", "ask", "127.0.0.1", "5000", "hello"]);
    assert!(out.ok().stdout.ends_with("receive: ok 0\nhello\n"), "{out:?}");
    let out = container.exec(&["/module.wasm", "tell", "127.0.0.1", "5000", "bye"]);
    assert_eq!(out.ok().stdout, "connect: ok 0\nsend: ok 0\n");
    end(&container);
}

/// Ways to listen and what has to come of each, in their order.
fn listening(ctx: &Ctx, bundle: &Bundle, ways: &[(&str, &str, &str)]) {
    let mut args = Vec::new();
    let mut expected = String::new();
    for (address, port, outcome) in ways {
        args.extend(["listen", address, port]);
        expected += match *outcome {
            "ok" => "bind: ok 0\nlisten: ok 0\n",
            _ => "bind: error 2\n",
        };
    }
    assert_eq!(says(ctx, bundle, &args), expected.trim_end());
}

fn without_rules_everything_is_allowed(ctx: &Ctx) {
    let bundle = net(ctx, &[]);
    listening(
        ctx,
        &bundle,
        &[("0.0.0.0", "80", "ok"), ("::", "81", "ok"), ("127.0.0.1", "0", "ok")],
    );
    let said = says(ctx, &bundle, &words("unbound connect 127.0.0.1 9 datagram 127.0.0.1 9"));
    assert_eq!(said, format!("listen unbound: ok 0\nconnect: {NOBODY}\ndatagram: ok 0"));
    // The engine itself has none of these.
    assert_eq!(says(ctx, &bundle, &["local"]), "open local: error 52");
}

fn only_what_the_rules_say_can_be_listened_on(ctx: &Ctx) {
    let bundle = net(ctx, &[("listen", "tcp:127.0.0.1:8080, tcp:[::1]:9000-9001")]);
    listening(
        ctx,
        &bundle,
        &[
            ("127.0.0.1", "8080", "ok"),
            ("::1", "9001", "ok"),
            ("127.0.0.1", "8081", "denied"),
            ("127.0.0.2", "8080", "denied"),
            ("0.0.0.0", "8080", "denied"),
            ("::", "8080", "denied"),
            ("::", "9000", "denied"),
            ("::1", "9002", "denied"),
            ("127.0.0.1", "0", "denied"),
        ],
    );
    listening(
        ctx,
        &bundle,
        &[
            ("::ffff:127.0.0.1", "8080", "ok"),
            ("::ffff:127.0.0.1", "8081", "denied"),
        ],
    );
    let said = says(
        ctx,
        &bundle,
        &words("unbound echo 1 127.0.0.1 8080 connect 127.0.0.1 9"),
    );
    assert_eq!(
        said,
        format!("listen unbound: {DENIED}\nbind: {DENIED}\nconnect: {NOBODY}")
    );
    annotate(&bundle, &[("listen", "tcp:*:*")]);
    assert_eq!(says(ctx, &bundle, &["unbound"]), "listen unbound: ok 0");
    listening(
        ctx,
        &bundle,
        &[("0.0.0.0", "80", "ok"), ("::", "81", "ok"), ("127.0.0.1", "0", "ok")],
    );
}

fn only_what_the_rules_say_can_be_connected_to(ctx: &Ctx) {
    let bundle = net(ctx, &[("connect", "tcp:127.0.0.0/30:80,udp:127.0.0.1:53")]);
    for (verb, address, port, outcome) in [
        ("connect", "127.0.0.1", "80", NOBODY),
        ("connect", "127.0.0.3", "80", NOBODY),
        ("connect", "::ffff:127.0.0.1", "80", NOBODY),
        ("connect", "0.0.0.0", "80", NOBODY),
        ("connect", "127.0.0.4", "80", DENIED),
        ("connect", "127.0.0.1", "81", DENIED),
        ("connect", "::1", "80", DENIED),
        ("connect", "::", "80", DENIED),
        ("connect", "::ffff:127.0.0.4", "80", DENIED),
        ("datagram", "127.0.0.1", "53", "ok 0"),
        ("datagram", "127.0.0.1", "80", DENIED),
        ("datagram", "127.0.0.2", "53", DENIED),
    ] {
        let said = says(ctx, &bundle, &[verb, address, port]);
        assert_eq!(said, format!("{verb}: {outcome}"), "{address} {port}");
    }
    // A datagram with an address of its own, over a socket that is not connected.
    let said = says(ctx, &bundle, &words("ask 127.0.0.2 53 x ask 127.0.0.1 54 x"));
    assert_eq!(said, format!("send to: {DENIED}\nsend to: {DENIED}"));
    let first = first_net(ctx, &[("connect", "tcp:127.0.0.0/30:80")]);
    let said = says(
        ctx,
        &first,
        &words("ask 127.0.0.1 53 x connect 127.0.0.1 81 connect 127.0.0.1 80"),
    );
    assert_eq!(said, format!("send to: {DENIED}\nconnect: {DENIED}\nconnect: {NOBODY}"));
}

fn an_empty_list_allows_nothing(ctx: &Ctx) {
    let bundle = net(ctx, &[("connect", ""), ("listen", "")]);
    let said = says(
        ctx,
        &bundle,
        &words("connect 127.0.0.1 80 datagram 127.0.0.1 53 ask ::1 53 x unbound listen ::1 80"),
    );
    let denied = ["connect", "datagram", "send to", "listen unbound", "bind"].map(|what| format!("{what}: {DENIED}"));
    assert_eq!(said, denied.join("\n"));
}

fn what_the_rules_allow_works(ctx: &Ctx) {
    let bundle = net(
        ctx,
        &[("listen", "tcp:127.0.0.1:8080"), ("connect", "tcp:127.0.0.1:8080")],
    );
    bundle.args(&["/module.wasm", "serve", "9", "127.0.0.1", "8080"]);
    let container = ctx.start(&bundle);
    container.says("listen: ok");
    let out = container.exec(&["/module.wasm", "get", "127.0.0.1", "8080"]);
    assert!(out.ok().stdout.contains("you said GET /x"), "{out:?}");
    end(&container);
    // What a server of datagrams answers, it sends.
    annotate(&bundle, &[("listen", "udp:*:5000"), ("connect", "udp:127.0.0.0/8:*")]);
    bundle.args(&["/module.wasm", "echo", "9", "127.0.0.1", "5000"]);
    let container = ctx.start(&bundle);
    container.says("bind: ok");
    let out = container.exec(&["/module.wasm", "ask", "127.0.0.1", "5000", "hello"]);
    assert!(out.ok().stdout.ends_with("hello\n"), "{out:?}");
    end(&container);
}

fn names_are_asked_of_nameservers_by_rule(ctx: &Ctx) {
    for (rules, resolved) in [
        ("dns", true),
        ("dns,tcp:10.0.0.0/8:80", true),
        ("", false),
        ("udp:*:53,tcp:*:53", false),
    ] {
        let bundle = resolving(ctx, &["inner.example.test", "beside"]);
        annotate(&bundle, &[("connect", rules)]);
        let container = ctx.create(&bundle);
        let asked = nameserver(&container);
        container.start();
        container.stopped();
        let said = container.stdout();
        assert!(said.ends_with("beside: 10.9.8.7\n"), "{rules}: {said}");
        assert_eq!(
            said.starts_with("inner.example.test: 10.1.2.3\n"),
            resolved,
            "{rules}: {said}"
        );
        assert_eq!(asked.try_iter().count() > 0, resolved, "{rules}: {said}");
        container.delete();
    }
}

fn the_file_and_the_annotation_both_have_to_allow_it(ctx: &Ctx) {
    let bundle = net(ctx, &[("connect", "tcp:*:80,tcp:*:81,tcp:*:82")]);
    let file = configuration(
        ctx,
        "[wasm.network]\nconnect = [\"127.0.0.1:81\", \"tcp:127.0.0.0/8:82-90\"]\n",
    );
    bundle.args(&words("/module.wasm connect 127.0.0.1 80 connect 127.0.0.1 81 connect 127.0.0.2 82 connect 127.0.0.2 81 connect 127.0.0.1 83"));
    let out = run_under(ctx, &file, &bundle);
    let outcomes = [DENIED, NOBODY, NOBODY, DENIED, DENIED].map(|outcome| format!("connect: {outcome}"));
    assert_eq!(out.ok().text(), outcomes.join("\n"));
    annotate(&bundle, &[]);
    let out = run_under(ctx, &file, &bundle);
    let outcomes = [DENIED, NOBODY, NOBODY, DENIED, NOBODY].map(|outcome| format!("connect: {outcome}"));
    assert_eq!(out.ok().text(), outcomes.join("\n"));
}

fn a_rule_that_is_none_is_refused_by_name(ctx: &Ctx) {
    let bundle = net(ctx, &[("connect", "tcp:localhost:80")]);
    refused(
        ctx,
        &bundle,
        &[
            "annotation proa.wasm/connect",
            "tcp:localhost:80",
            "not an IPv4 address",
        ],
    );
    annotate(&bundle, &[("listen", "dns")]);
    refused(ctx, &bundle, &["annotation proa.wasm/listen", "dns"]);
    annotate(&bundle, &[]);
    let file = configuration(ctx, "[wasm.network]\nlisten = [\"tcp:80\"]\n");
    run_under(ctx, &file, &bundle).refused(&["config.toml", "tcp:80", "no port"]);
}

fn exec_is_held_to_the_same_rules(ctx: &Ctx) {
    let bundle = net(ctx, &[("connect", "tcp:127.0.0.1:80")]);
    bundle.sh("sleep 100");
    let container = ctx.start(&bundle);
    let out = container.exec(&words("/module.wasm connect 127.0.0.1 80 connect 127.0.0.1 81"));
    assert_eq!(out.ok().text(), format!("connect: {NOBODY}\nconnect: {DENIED}"));
}

/// What the kernel is told comes on top of it.
fn rules_hold_without_landlock(ctx: &Ctx) {
    let bundle = net(ctx, &[("connect", "tcp:127.0.0.1:80")]);
    bundle.args(&words("/module.wasm connect 127.0.0.1 80 connect 127.0.0.1 81"));
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &ctx.id()]);
    let out = call
        .under(&[ctx.probe.to_str().unwrap(), "mask", "landlock_create_ruleset"])
        .output();
    assert_eq!(out.ok().text(), format!("connect: {NOBODY}\nconnect: {DENIED}"));
}
