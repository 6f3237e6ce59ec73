//! What bounds a guest's memories and tables: the container's memory limit and its policy. What a module starts with is
//! compared when the container is created; what it grows to, the engine compares.

use super::module::{self, PAGE, Refusal, Survey, tables};
use crate::Guest;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The most pages a 32-bit memory can have.
const PAGES_MAX: u64 = 65536;

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

    /// The most pages each memory of a module may have; `None` if nothing bounds them.
    pub fn pages(&self, survey: &Survey) -> Option<u32> {
        let limit = self.memory_limit.map(|limit| limit / PAGE);
        let all = [limit, self.pages].into_iter().flatten().min()?;
        // The engine's bound is of each; all together must fit.
        let each = all / survey.memories.max(1);
        Some(each.max(survey.pages).min(PAGES_MAX) as u32)
    }
}

/// The bytes of a module as the engine gets them.
pub struct Prepared {
    /// The module.
    pub bytes: Vec<u8>,
    /// What it says about itself.
    pub survey: Survey,
}

/// Puts what the engine has no option for into the module itself.
pub fn prepare(mut bytes: Vec<u8>, bounds: &Bounds) -> Result<Prepared, Refusal> {
    let mut survey = module::survey(std::io::Cursor::new(&bytes), bytes.len() as u64)?;
    bounds.check_start(&survey)?;
    if let Some(limit) = bounds.table_elements
        && let Some(bounded) = tables::bound(&bytes, &survey, limit)?
    {
        bytes = bounded.module;
        survey = module::survey(std::io::Cursor::new(&bytes), bytes.len() as u64)?;
    }
    Ok(Prepared { bytes, survey })
}
