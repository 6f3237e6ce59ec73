//! Where a guest trapped: what the engine has logged of it (an offset in the module, the indices of functions), with the names
//! that the module has for them.
//!
//! 0.17 tells the calling functions, of interpreted and of compiled code; 0.14 only the offset of the instruction, and of
//! compiled code nothing.

use super::module::names::{Function, function_at, functions};
use std::fs::File;

/// The most functions that are shown.
const SHOWN: usize = 32;

/// A trap in words.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trap {
    /// The function in which it happened first, then who called it, and so on.
    pub functions: Vec<Function>,
    /// How many more there are.
    pub left_out: usize,
    /// The offset of the instruction in the module's file, if it is known.
    pub offset: Option<u64>,
}

/// What the end of the engine's log tells.
fn parse(log: &str) -> (Option<u64>, Vec<u32>) {
    let after = |mark: &str| log.rfind(mark).map(|at| &log[at + mark.len()..]);
    let offset = after("Bytecode offset: 0x").and_then(|text| {
        let digits = text.split(|letter: char| !letter.is_ascii_hexdigit()).next()?;
        u64::from_str_radix(digits, 16).ok()
    });
    let line = after("calling stack:").and_then(|text| text.lines().next());
    let stack = line.unwrap_or_default().split(',');
    (offset, stack.map_while(|index| index.trim().parse().ok()).collect())
}

/// Reads `log`, the end of the engine's, and the module, which is open as `file` and whose content the engine had with
/// everything from `moved.0` on moved by `moved.1` bytes. Of `compiled` code the engine tells the innermost function first, of
/// interpreted code the outermost.
pub fn trace(log: &str, file: &File, moved: Option<(u64, i64)>, compiled: bool) -> Trap {
    let (offset, mut stack) = parse(log);
    if !compiled {
        stack.reverse();
    }
    let offset = match (offset, moved) {
        (Some(offset), Some((from, by))) if offset >= from => offset.checked_add_signed(-by),
        (offset, _) => offset,
    };
    let Ok(size) = file.metadata().map(|metadata| metadata.len()) else {
        return Trap::default();
    };
    // The instruction's function is not among the callers.
    let at = offset.and_then(|offset| function_at(file, size, offset));
    stack.splice(0..0, at);
    let left_out = stack.len().saturating_sub(SHOWN);
    stack.truncate(SHOWN);
    Trap {
        functions: functions(file, size, &stack),
        left_out,
        offset,
    }
}

impl Trap {
    /// A line for each function, for stderr.
    pub fn lines(&self) -> String {
        let mut lines = String::new();
        for (place, function) in self.functions.iter().enumerate() {
            let name = function.name.as_deref().unwrap_or("?");
            let offset = match (place, self.offset) {
                (0, Some(offset)) => format!(", offset {offset:#x}"),
                _ => String::new(),
            };
            lines += &format!("proa:   at {name} (function {}{offset})\n", function.index);
        }
        if self.left_out > 0 {
            lines += &format!("proa:   … and {} more\n", self.left_out);
        }
        lines
    }

    /// The functions in a few words, for where there is room for one line; empty if none is known.
    pub fn short(&self) -> String {
        let names: Vec<String> = self
            .functions
            .iter()
            .map(|function| match &function.name {
                Some(name) => name.clone(),
                None => format!("function {}", function.index),
            })
            .collect();
        match names.is_empty() {
            true => String::new(),
            false => format!(" at {}", names.join(" < ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_logs_are_read() {
        let old = "[2026-11-27 20:00:00.000] [error] execution failed: unreachable, Code: 0x40a\n\
                   [2026-11-27 20:00:00.000] [error]     In instruction: unreachable (0x00) , Bytecode offset: 0x0000012f\n\
                   [2026-11-27 20:00:00.000] [error]     When executing function name: \"_start\"\n";
        assert_eq!(parse(old), (Some(0x12f), vec![]));
        let new = "execution failed: unreachable, Code: 0x40a\n    In instruction: unreachable (0x00), Bytecode offset: \
                   0x0000012f\ncalling stack:12, 5, 0\n";
        assert_eq!(parse(new), (Some(0x12f), vec![12, 5, 0]));
        assert_eq!(parse("calling stack:\n"), (None, vec![]));
        assert_eq!(
            parse("calling stack:9999999999, 1 Bytecode offset: 0xfffffffffffffffff"),
            (None, vec![])
        );
    }

    #[test]
    fn a_backtrace_is_shown() {
        let function = |index, name: Option<&str>| Function {
            index,
            name: name.map(str::to_owned),
        };
        let trap = Trap {
            functions: vec![function(3, Some("boom")), function(1, None)],
            left_out: 2,
            offset: Some(0x12f),
        };
        let lines = "proa:   at boom (function 3, offset 0x12f)\nproa:   at ? (function 1)\nproa:   … and 2 more\n";
        assert_eq!(trap.lines(), lines);
        assert_eq!(trap.short(), " at boom < function 1");
        assert_eq!(Trap::default().short() + &Trap::default().lines(), "");
    }
}
