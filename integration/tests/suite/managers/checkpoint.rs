//! What the tests of checkpoints need under each of the managers.

use proa_integration::ctx::eventually;

use super::Said;

/// What the program has in its memory alone, it shows in a file when it is asked.
pub const PROGRAM: &str = "word=$(cat /proc/sys/kernel/random/uuid); trap 'echo $word > /said' USR1; \
     echo up > /up; while :; do sleep 0.05; done";

/// Asks the program for its word.
pub fn ask(exec: impl Fn(&[&str]) -> Said, signal: impl Fn() -> String) -> String {
    eventually("the program", || (exec(&["cat", "/up"]).code == 0).then_some(()));
    exec(&["rm", "-f", "/said"]).ok();
    signal();
    eventually("an answer", || {
        let said = exec(&["cat", "/said"]);
        (said.code == 0 && said.text.ends_with('\n')).then_some(said.text)
    })
}
