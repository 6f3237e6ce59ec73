//! `proa list`.

use super::state::View;
use super::{Error, Globals, print, print_json};
use crate::state::Container;
use proa_executor::text;
use std::fmt::Write;
use std::io::ErrorKind;

pub(super) fn run(globals: &Globals, args: liboci_cli::List) -> Result<u8, Error> {
    let containers = containers(globals)?;
    if args.quiet {
        let ids: String = containers
            .iter()
            .map(|container| format!("{}\n", container.id()))
            .collect();
        return print(ids.as_bytes());
    }
    let views: Vec<View> = containers
        .iter()
        .map(|one| View::new(one, owner(one.record.owner)))
        .collect();
    match args.format.as_str() {
        "table" => print(table(&views).as_bytes()),
        // Go prints a list that was never made as null.
        "json" if views.is_empty() => print(b"null\n"),
        "json" => {
            let mut json = serde_json::to_vec(&views).map_err(|error| Error::Stdout(error.into()))?;
            json.push(b'\n');
            print_json(&json)
        }
        _ => Err(Error::Format),
    }
}

fn containers(globals: &Globals) -> Result<Vec<Container>, Error> {
    let ids = match globals.store.ids() {
        Err(crate::state::Error::File { source, .. })
            if source.kind() == ErrorKind::NotFound && !globals.root_given =>
        {
            return Ok(Vec::new());
        }
        other => other?,
    };
    let open = |id: &String| match globals.store.open(id) {
        Ok(container) => Some(container),
        Err(error) => {
            eprintln!("{}", text::line(&format!("load container {id}: {error}")));
            None
        }
    };
    Ok(ids.iter().filter_map(open).collect())
}

/// Columns at least 12 wide and 3 apart, the last one ragged: Go's tabwriter as runc sets it.
fn table(views: &[View]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from)];
    rows.extend(views.iter().map(|view| {
        [
            view.id.to_owned(),
            view.pid.to_string(),
            view.status.to_string(),
            text::line(&view.bundle.display().to_string()).into_owned(),
            view.created.to_owned(),
            view.owner.clone(),
        ]
    }));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count() + 3)
            .max()
            .unwrap_or(0)
            .max(12)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string can't fail.
            write!(text, "{cell:width$}").ok();
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

/// The user's name, or `#uid`. Only /etc/passwd is asked: a static executable has no other name services.
fn owner(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_of(&passwd, uid).unwrap_or_else(|| format!("#{uid}"))
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_runcs() {
        let expected = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
        assert_eq!(table(&[]), expected);
    }

    #[test]
    fn owners_are_named() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nodd\nme:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of(passwd, 0).as_deref(), Some("root"));
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("me"));
        assert_eq!(name_of(passwd, 7), None);
    }
}
