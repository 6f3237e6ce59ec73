//! Terminals: over a console socket, in the foreground, and of `exec`.

use std::fs;

use proa_integration::console::{ConsoleSocket, Terminal};
use proa_integration::{Ctx, tests};
use serde_json::json;

tests! {
    console_socket_receives_the_terminal;
    terminal_has_the_size_of_the_configuration .once();
    terminal_is_the_programs_controlling_tty .once();
    terminal_belongs_to_the_process_user .once();
    console_device_is_the_terminal .once();
    terminal_hangs_up_with_its_container .once();
    terminal_without_a_console_socket_is_refused_when_detached .once();
    console_socket_without_a_terminal_is_refused .once();
    console_socket_that_nobody_listens_on_is_refused .once();
    foreground_terminal_is_passed_through .once();
    foreground_terminal_is_restored .once();
    foreground_terminal_passes_control_c .once();
    exec_with_a_terminal_over_a_console_socket .once();
    exec_with_a_terminal_in_the_foreground .once();
    foreground_terminal_leaves_newlines_alone .once();
    foreground_terminal_shows_why_the_program_was_refused .once().only_proa();
}

fn console_socket_receives_the_terminal(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/terminal", json!(true))
        .sh("echo hello; read line; echo got $line; read line");
    let socket = ConsoleSocket::new(&ctx.dir);
    let container = ctx.container(&bundle);
    let call = ctx.create_call(
        &bundle,
        &container.id,
        &["--console-socket", socket.path.to_str().unwrap()],
    );
    let running = call.spawn();
    let mut terminal = socket.terminal();
    running.wait().ok();
    container.start();
    terminal.expect("hello\r\n");
    terminal.type_in("typed\n");
    terminal.expect("got typed\r\n");
}

fn on_terminal(ctx: &Ctx, script: &str, change: impl FnOnce(&proa_integration::Bundle)) -> String {
    let bundle = ctx.bundle();
    bundle.set("/process/terminal", json!(true)).sh(script);
    change(&bundle);
    let socket = ConsoleSocket::new(&ctx.dir);
    let container = ctx.container(&bundle);
    let flags = [
        "run",
        "--detach",
        "--bundle",
        bundle.dir.to_str().unwrap(),
        "--console-socket",
        socket.path.to_str().unwrap(),
        &container.id,
    ];
    let running = ctx.call(&flags).spawn();
    let terminal = socket.terminal();
    running.wait().ok();
    terminal.rest()
}

fn terminal_has_the_size_of_the_configuration(ctx: &Ctx) {
    let text = on_terminal(ctx, "stty size", |b| {
        drop(
            b.set("/process/consoleSize", json!({"width": 111, "height": 33}))
                .spec(),
        )
    });
    assert_eq!(text, "33 111\r\n");
}

fn terminal_is_the_programs_controlling_tty(ctx: &Ctx) {
    let text = on_terminal(
        ctx,
        "tty; ps -o pid,tty | head -2; : < /dev/tty && echo controlling",
        |_| (),
    );
    assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
    assert!(text.contains("controlling"), "{text}");
}

fn terminal_belongs_to_the_process_user(ctx: &Ctx) {
    let text = on_terminal(ctx, "stat -c %u /dev/pts/0; echo x > /dev/pts/0", |b| {
        b.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    });
    assert_eq!(text, "1000\r\nx\r\n");
}

fn console_device_is_the_terminal(ctx: &Ctx) {
    let text = on_terminal(ctx, "echo to the console > /dev/console", |_| ());
    assert_eq!(text, "to the console\r\n");
}

fn terminal_hangs_up_with_its_container(ctx: &Ctx) {
    assert_eq!(on_terminal(ctx, "exit 3", |_| ()), "");
}

fn terminal_without_a_console_socket_is_refused_when_detached(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/process/terminal", json!(true));
    ctx.create_call(&bundle, &ctx.id(), &[])
        .output()
        .refused(&["console socket", "console-socket"]);
    ctx.run_with(&bundle, &["--detach"])
        .refused(&["console socket", "console-socket"]);
}

fn console_socket_without_a_terminal_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    let socket = ConsoleSocket::new(&ctx.dir);
    let out = ctx
        .create_call(&bundle, &ctx.id(), &["--console-socket", socket.path.to_str().unwrap()])
        .output();
    out.refused(&["console socket", "console-socket"]);
}

fn console_socket_that_nobody_listens_on_is_refused(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/process/terminal", json!(true));
    let path = ctx.dir.join("nobody.sock");
    let out = ctx
        .create_call(&bundle, &ctx.id(), &["--console-socket", path.to_str().unwrap()])
        .output();
    out.refused(&["nobody.sock"]);
}

/// Runs a program in the foreground of a terminal whose session it leads.
fn foreground(ctx: &Ctx, args: &[&str]) -> (Terminal, proa_integration::ctx::Running) {
    let (terminal, slave) = Terminal::open();
    let running = ctx
        .call(args)
        .under(&["setsid", "--ctty", "--wait"])
        .stdio(slave)
        .spawn();
    (terminal, running)
}

fn foreground_terminal_is_passed_through(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/terminal", json!(true))
        .sh("tty; echo ask; read line; echo got $line; exit 5");
    let id = ctx.id();
    let (mut terminal, running) = foreground(ctx, &["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    terminal.expect("ask");
    terminal.type_in("typed\n");
    terminal.expect("got typed");
    running.wait().code(5);
    assert!(terminal.rest().contains("/dev/"));
}

fn foreground_terminal_is_restored(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/process/terminal", json!(true)).sh("echo ask; read line");
    let (mut terminal, slave) = Terminal::open();
    let before = rustix::termios::tcgetattr(&slave).unwrap();
    let id = ctx.id();
    let call = ctx.call(&["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    let running = call
        .under(&["setsid", "--ctty", "--wait"])
        .stdio(slave.try_clone().unwrap())
        .spawn();
    terminal.expect("ask");
    terminal.type_in("\n");
    running.wait().ok();
    let after = rustix::termios::tcgetattr(&slave).unwrap();
    assert_eq!(
        (before.local_modes, before.input_modes, before.output_modes),
        (after.local_modes, after.input_modes, after.output_modes)
    );
}

fn foreground_terminal_passes_control_c(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle
        .set("/process/terminal", json!(true))
        .sh("trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done");
    let id = ctx.id();
    let (mut terminal, running) = foreground(ctx, &["run", "--bundle", bundle.dir.to_str().unwrap(), &id]);
    terminal.expect("ready");
    terminal.type_in("\u{3}");
    terminal.expect("interrupted");
    running.wait().code(9);
}

fn exec_with_a_terminal_over_a_console_socket(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let socket = ConsoleSocket::new(&ctx.dir);
    let pid_file = ctx.dir.join("exec.pid");
    let flags = [
        "--tty",
        "--detach",
        "--console-socket",
        socket.path.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
    ];
    let running = container
        .exec_call(&flags, &["sh", "-c", "tty; read line; echo got $line"])
        .spawn();
    let mut terminal = socket.terminal();
    running.wait().ok();
    terminal.expect("/dev/");
    terminal.type_in("typed\n");
    terminal.expect("got typed");
    assert!(fs::read_to_string(pid_file).unwrap().parse::<u32>().is_ok());
}

fn exec_with_a_terminal_in_the_foreground(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    let (mut terminal, running) = foreground(
        ctx,
        &[
            "exec",
            "--tty",
            &container.id,
            "sh",
            "-c",
            "tty; echo ask; read line; exit 6",
        ],
    );
    terminal.expect("ask");
    terminal.type_in("\n");
    running.wait().code(6);
}

fn foreground_terminal_leaves_newlines_alone(ctx: &Ctx) {
    let bundle = ctx.bundle();
    bundle.set("/process/terminal", json!(true)).sh("echo one; echo two");
    assert_eq!(ctx.run(&bundle).ok().stdout, "one\ntwo\n");
}

/// It says so once, as without a terminal.
fn foreground_terminal_shows_why_the_program_was_refused(ctx: &Ctx) {
    use std::os::unix::fs::PermissionsExt;
    let bundle = ctx.bundle();
    bundle
        .set("/process/terminal", json!(true))
        .file("/bin/odd", "#!/no/such/interpreter\n")
        .args(&["/bin/odd"]);
    fs::set_permissions(bundle.path("/bin/odd"), fs::Permissions::from_mode(0o755)).unwrap();
    let id = ctx.id();
    let said = |args: &[&str], words: &str| {
        let (mut terminal, running) = foreground(ctx, args);
        terminal.expect(words);
        running.wait().code(255);
        let text = terminal.rest();
        assert_eq!(text.matches("no such file or directory").count(), 1, "{text}");
    };
    said(
        &["run", "--bundle", bundle.dir.to_str().unwrap(), &id],
        "exec /bin/odd: no such file or directory",
    );
    bundle.set("/process/terminal", json!(false)).args(&["sleep", "1000"]);
    let container = ctx.start(&bundle);
    said(
        &["exec", "--tty", &container.id, "/bin/odd"],
        "exec /bin/odd: no such file or directory",
    );
}
