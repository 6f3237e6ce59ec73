//! Our part of a text that is otherwise somebody else's: the lines between two comments.

use super::tree::Tree;
use super::{Edit, Error, Request};
use std::ops::Range;
use std::path::{Path, PathBuf};

fn begin(name: &str) -> String {
    format!("# BEGIN proa setup: {name}")
}

fn end(name: &str) -> String {
    format!("# END proa setup: {name}")
}

/// Where the block of that runtime is, its comments included.
pub fn find(path: &Path, text: &str, name: &str) -> Result<Option<Range<usize>>, Error> {
    let (begin, end) = (begin(name), end(name));
    let mut start = None;
    let mut at = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let next = at + line.len();
        match line.trim() {
            bare if bare == begin => start = start.or(Some((at, index + 1))),
            bare if bare == end && start.is_some() => return Ok(start.map(|(start, _)| start..next)),
            _ => {}
        }
        at = next;
    }
    match start {
        None => Ok(None),
        Some((_, line)) => Err(Error::Refused {
            path: path.into(),
            line,
            problem: format!("{begin:?} has no {end:?} after it: where our part ends can't be told; remove it by hand"),
        }),
    }
}

/// The text without the block, and without the empty line that was put before it.
pub fn without(text: &str, block: &Range<usize>) -> String {
    let mut start = block.start;
    let head = &text[..start];
    if head.ends_with("\n\n") || head == "\n" {
        start -= 1;
    }
    format!("{}{}", &text[..start], &text[block.end..])
}

/// The block with that body.
pub fn wrap(name: &str, body: &str) -> String {
    format!("{}\n{body}{}\n", begin(name), end(name))
}

/// The text with the block where it is already, or at the end.
pub fn put(text: &str, at: Option<&Range<usize>>, block: &str) -> String {
    match at {
        Some(at) => format!("{}{block}{}", &text[..at.start], &text[at.end..]),
        None if text.is_empty() => block.to_owned(),
        None if text.ends_with('\n') => format!("{text}\n{block}"),
        None => format!("{text}\n\n{block}"),
    }
}

/// The edit that takes a block away, and the file with it if nothing else is in there.
pub fn removed(path: PathBuf, text: String, at: &Range<usize>) -> Edit {
    let rest = without(&text, at);
    Edit {
        path,
        part: text[at.clone()].to_owned(),
        before: Some(text),
        after: (!rest.trim().is_empty()).then_some(rest),
        ..Edit::default()
    }
}

/// The edit that takes our block out of a file.
pub fn take(tree: &Tree, request: &Request, path: PathBuf) -> Result<Edit, Error> {
    let text = tree.read(&path)?;
    let at = match &text {
        Some(text) => find(&path, text, &request.name)?,
        None => None,
    };
    Ok(match (text, at) {
        (Some(text), Some(at)) => removed(path, text, &at),
        (text, _) => Edit {
            path,
            before: text.clone(),
            after: text,
            ..Edit::default()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Option<Range<usize>> {
        find(Path::new("/f"), text, "proa").unwrap()
    }

    #[test]
    fn what_was_put_is_taken_away_to_the_byte() {
        let block = wrap("proa", "x = 1\n");
        for text in ["", "a\n", "a\n\n", "\n", "a\n\n\n"] {
            let with = put(text, None, &block);
            let at = range(&with).unwrap();
            assert_eq!(&with[at.clone()], block);
            assert_eq!(without(&with, &at), text, "{text:?}");
            // Whatever was written before and after it meanwhile.
            let more = format!("first\n{with}last\n");
            assert_eq!(without(&more, &range(&more).unwrap()), format!("first\n{text}last\n"));
            let other = wrap("proa", "x = 2\n");
            assert_eq!(put(&with, Some(&at), &other), with.replace("x = 1", "x = 2"));
        }
    }

    #[test]
    fn another_names_block_is_not_ours() {
        assert_eq!(range(&wrap("proa-2", "x = 1\n")), None);
    }

    #[test]
    fn a_block_without_an_end_is_named() {
        let error = find(Path::new("/f"), "a\n# BEGIN proa setup: proa\nb\n", "proa").unwrap_err();
        assert!(error.to_string().starts_with("/f:2: "), "{error}");
    }
}
