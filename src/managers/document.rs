//! TOML as far as it is looked at: values by their keys, lines by their places.

use super::tree::Tree;
use super::{Edit, Error, Request, block};
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml_edit::{Document as Toml, DocumentMut, Item, Value};

/// A file that is there and is TOML.
pub struct Document {
    /// The file.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Where our block is.
    pub block: Option<Range<usize>>,
    /// What stands in it besides our block.
    base: Toml<String>,
}

impl Document {
    /// Takes a file apart; what is broken is told with its line.
    pub fn parse(path: &Path, text: String, name: &str) -> Result<Self, Error> {
        toml(path, &text)?;
        let block = block::find(path, &text, name)?;
        let base = match &block {
            // Blank lines keep the lines that follow where they are.
            Some(at) => {
                let lines = text[at.clone()].matches('\n').count();
                format!("{}{}{}", &text[..at.start], "\n".repeat(lines), &text[at.end..])
            }
            None => text.clone(),
        };
        Ok(Self {
            path: path.into(),
            base: toml(path, &base)?,
            text,
            block,
        })
    }

    /// What is at the end of that path of keys, outside of our block.
    pub fn get(&self, keys: &[&str]) -> Option<&Item> {
        keys.iter().try_fold(self.base.as_item(), |item, key| item.get(*key))
    }

    /// Whether nothing but comments stands outside of our block.
    pub fn is_bare(&self) -> bool {
        self.base.as_table().is_empty()
    }

    /// The line of something in it, counted from 1.
    pub fn line(&self, item: &Item) -> usize {
        let at = item.span().map_or(0, |span| span.start);
        self.base.raw()[..at].matches('\n').count() + 1
    }

    /// A refusal that names the line of `item`.
    pub fn refuse(&self, item: &Item, problem: String) -> Error {
        Error::Refused {
            path: self.path.clone(),
            line: self.line(item),
            problem,
        }
    }

    /// The text with that body in our block, if that is still TOML: a table may be written in a way that can't be continued.
    pub fn with(&self, name: &str, body: &str) -> Result<String, Error> {
        let text = block::put(&self.text, self.block.as_ref(), &block::wrap(name, body));
        toml(&self.path, &text)?;
        Ok(text)
    }
}

fn toml(path: &Path, text: &str) -> Result<Toml<String>, Error> {
    Toml::parse(text.to_owned()).map_err(|error| Error::Broken {
        path: path.into(),
        problem: error.to_string().trim_end().to_owned(),
    })
}

/// The text without the table at that path of keys, all else as it is: for when another program has rewritten the file, and
/// the comments around our block are gone.
pub fn without_table(path: &Path, text: &str, keys: &[&str]) -> Result<String, Error> {
    let mut document: DocumentMut = toml(path, text)?.into_mut();
    if let Some((last, parents)) = keys.split_last() {
        let parent = parents
            .iter()
            .try_fold(document.as_item_mut(), |item, key| item.get_mut(*key));
        if let Some(table) = parent.and_then(Item::as_table_like_mut) {
            table.remove(last);
        }
    }
    Ok(document.to_string())
}

/// The edit that puts `body` into our block of a TOML file of ours.
pub fn put(tree: &Tree, request: &Request, path: PathBuf, body: String, notes: Vec<String>) -> Result<Edit, Error> {
    let parse = |text| Document::parse(&path, text, &request.name);
    let file = tree.read(&path)?.map(parse).transpose()?;
    put_in(file.as_ref(), request, path, body, notes)
}

/// The same for a file that was read, or that there is none of.
pub fn put_in(
    file: Option<&Document>,
    request: &Request,
    path: PathBuf,
    body: String,
    notes: Vec<String>,
) -> Result<Edit, Error> {
    let (before, after, pristine) = match file {
        None => (None, block::put("", None, &block::wrap(&request.name, &body)), false),
        Some(file) => (
            Some(file.text.clone()),
            file.with(&request.name, &body)?,
            file.block.is_none(),
        ),
    };
    Ok(Edit {
        path,
        before,
        after: Some(after),
        part: body,
        pristine,
        notes,
    })
}

/// A string as TOML has it.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Strings as an array of TOML.
pub fn array(strings: &[impl AsRef<str>]) -> String {
    let all: Vec<String> = strings.iter().map(|text| quoted(text.as_ref())).collect();
    format!("[{}]", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_files_though_our_block_is_left_out() {
        let text = "a = 1\n# BEGIN proa setup: proa\n[t]\nx = 1\n# END proa setup: proa\n[u]\ny = 2\n";
        let document = Document::parse(Path::new("/f"), text.into(), "proa").unwrap();
        assert!(document.get(&["t"]).is_none());
        assert_eq!(document.line(document.get(&["u", "y"]).unwrap()), 7);
        let Err(error) = Document::parse(Path::new("/f"), "a = 1\nb = \n".into(), "proa") else {
            panic!("it is broken");
        };
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn a_table_goes_and_the_rest_stays() {
        let text = "# first\n[a.b] # b\nx = 1\n\n  [a.c]\n  y = [ 1,2 ]\n\n[a.b.d]\nz = 1\n";
        let left = without_table(Path::new("/f"), text, &["a", "b"]).unwrap();
        assert!(left.contains("  [a.c]\n  y = [ 1,2 ]\n"), "{left}");
        assert!(!left.contains("x = 1") && !left.contains("z = 1"), "{left}");
        assert_eq!(without_table(Path::new("/f"), text, &["q", "b"]).unwrap(), text);
    }

    #[test]
    fn a_table_that_cannot_be_continued_is_told() {
        let document = Document::parse(Path::new("/f"), "t = { a = 1 }\n".into(), "proa").unwrap();
        assert!(document.with("proa", "[t.b]\nx = 1\n").is_err());
    }
}
