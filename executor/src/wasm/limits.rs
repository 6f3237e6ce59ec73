//! What bounds a guest's memories and tables: the container's memory limit and its policy. What a module starts with is
//! compared when the container is created; what it grows to, the engine compares.

use super::module::{self, PAGE, Refusal, Survey, tables};
use crate::Guest;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The most pages a 32-bit memory can have.
const PAGES_MAX: u64 = 65536;
/// Bytes that stay free under any memory limit; measured in docs/decisions/0010.
const RESERVE: u64 = 1 << 20;
/// And such a part of it.
const RESERVE_PART: u64 = 64;

/// The bounds of one guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// `linux.resources.memory.limit`, bytes.
    memory_limit: Option<u64>,
    /// `proa.wasm/pages`, of all memories.
    pages: Option<u64>,
    /// `proa.wasm/table-elements`, of each table.
    pub table_elements: Option<u32>,
}

impl Bounds {
    /// Those that code which was compiled ahead of time has in it.
    pub fn of_code(options: &crate::aot::Options) -> Self {
        Self {
            table_elements: options.table_elements,
            ..Self::default()
        }
    }

    /// Those of `guest`.
    pub fn of(guest: &Guest) -> Self {
        let limits = guest.policy.as_ref().map(|policy| policy.limits).unwrap_or_default();
        Self {
            memory_limit: guest.memory_limit,
            pages: limits.pages,
            table_elements: limits.table_elements,
        }
    }

    /// Refuses a module that can't be run, or starts with more than it may have. `file` is the module's.
    pub fn check(&self, survey: &Survey, file: &File) -> Result<(), Refusal> {
        self.check_start(survey)?;
        let Some(limit) = self.table_elements else {
            return Ok(());
        };
        let Some((offset, length)) = tables::place(survey)? else {
            return Ok(());
        };
        let mut section = vec![0; length];
        file.read_exact_at(&mut section, offset).map_err(Refusal::Read)?;
        tables::check(&section, survey, limit)
    }

    /// As [`Bounds::check`], but for the tables.
    pub fn check_start(&self, survey: &Survey) -> Result<(), Refusal> {
        survey.check(self.memory_limit)?;
        match self.pages {
            Some(limit) if survey.pages > limit => Err(Refusal::Pages {
                pages: survey.pages,
                limit,
            }),
            _ => Ok(()),
        }
    }

    /// The most pages each memory of a module may have; `None` if nothing bounds them. `used` is what the process needs for
    /// itself, in bytes: the engine, and all that it has made of the module.
    ///
    /// From the memory limit go `used` and a reserve: then `memory.grow` fails before the kernel has to kill. Never less
    /// than the module starts with, of which it may touch little.
    pub fn pages(&self, survey: &Survey, used: u64) -> Option<u32> {
        let room = self
            .memory_limit
            .map(|limit| limit.saturating_sub(used + reserve(limit)) / PAGE);
        let all = [room, self.pages].into_iter().flatten().min()?;
        // The engine's bound is of each; all together must fit.
        let each = all / survey.memories.max(1);
        Some(each.max(survey.pages).min(PAGES_MAX) as u32)
    }
}

/// What is left for what comes while the guest runs: the kernel's own memory for the process (half a MiB, and page tables),
/// the engine's stack of values, buffers of files and sockets, and what is counted inexactly.
fn reserve(limit: u64) -> u64 {
    RESERVE + limit / RESERVE_PART
}

/// The bytes of a module as the engine gets them.
pub struct Prepared {
    /// The module.
    pub bytes: Vec<u8>,
    /// What it says about itself.
    pub survey: Survey,
    /// From which offset on everything was moved, and by how many bytes.
    pub moved: Option<(u64, i64)>,
}

/// Puts what the engine has no option for into the module itself. Code that the module brings along is still in it.
pub fn prepare(bytes: Vec<u8>, bounds: &Bounds) -> Result<Prepared, Refusal> {
    let prepared = prepare_any(bytes, bounds)?;
    bounds.check_start(&prepared.survey)?;
    Ok(prepared)
}

/// As [`prepare`], of a module that need not be run.
pub fn prepare_any(mut bytes: Vec<u8>, bounds: &Bounds) -> Result<Prepared, Refusal> {
    let mut survey = module::survey(std::io::Cursor::new(&bytes), bytes.len() as u64)?;
    let mut moved = None;
    if let Some(limit) = bounds.table_elements
        && let Some(bounded) = tables::bound(&bytes, &survey, limit)?
    {
        moved = Some((bounded.from, bounded.by));
        bytes = bounded.module;
        survey = module::survey(std::io::Cursor::new(&bytes), bytes.len() as u64)?;
    }
    Ok(Prepared { bytes, survey, moved })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(pages: u64, memories: u64) -> Survey {
        Survey {
            command: true,
            pages,
            memories,
            ..Survey::default()
        }
    }

    fn bounds(memory_limit: Option<u64>, pages: Option<u64>) -> Bounds {
        Bounds {
            memory_limit,
            pages,
            table_elements: None,
        }
    }

    #[test]
    fn the_engine_has_its_room_under_the_memory_limit() {
        let mib = 1 << 20;
        assert_eq!(bounds(None, None).pages(&survey(2, 1), 5 * mib), None);
        // 64 - 5 - 1 - 1 MiB are 57 MiB.
        assert_eq!(
            bounds(Some(64 * mib), None).pages(&survey(2, 1), 5 * mib),
            Some(57 * 16)
        );
        assert_eq!(bounds(Some(64 * mib), None).pages(&survey(2, 2), 5 * mib), Some(57 * 8));
        assert_eq!(bounds(Some(64 * mib), Some(10)).pages(&survey(2, 1), 5 * mib), Some(10));
        assert_eq!(bounds(Some(1 << 50), None).pages(&survey(2, 1), 0), Some(65536));
    }

    #[test]
    fn what_it_starts_with_a_module_may_have() {
        assert_eq!(bounds(Some(1 << 20), None).pages(&survey(7, 1), 5 << 20), Some(7));
    }

    #[test]
    fn more_pages_than_allowed_are_refused() {
        let refused = bounds(None, Some(6))
            .check_start(&survey(7, 1))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("7 pages") && refused.contains("= 6"), "{refused}");
        assert!(bounds(None, Some(7)).check_start(&survey(7, 1)).is_ok());
    }
}
