//! Files of a crate that import each other in a circle: none of them can be read alone. At most three may.
//!
//! A `use` is followed to the file that defines the name, through `pub use` on the way; a module that
//! re-exports is no part of the circle for that alone. Strongly connected components are Tarjan's (1972), in
//! a recursive form.

use super::sources::{SourceTree, TextFile};
use std::collections::{BTreeMap, BTreeSet};

/// Most files that a circle may hold.
pub(super) const FILES_MAX: usize = 3;
/// Re-exports followed for one name.
const HOPS_MAX: usize = 8;

/// Returns every circle of more than one file, largest first.
pub(super) fn circles(sources: &SourceTree) -> Vec<Vec<String>> {
    let product = |file: &&TextFile| !file.is_test() && file.path.contains("/src/");
    let mut crates: BTreeMap<&str, Vec<&TextFile>> = BTreeMap::new();
    for file in sources.rust().filter(product) {
        crates.entry(file.path.split('/').next().unwrap_or_default()).or_default().push(file);
    }
    let mut found: Vec<Vec<String>> = crates.values().flat_map(|files| Tree::of(files).circles()).collect();
    found.sort_by_key(|circle| (std::cmp::Reverse(circle.len()), circle.clone()));
    found
}

/// The modules of a crate, each with the names that it imports.
struct Tree {
    modules: BTreeMap<Vec<String>, Module>,
}

struct Module {
    file: String,
    /// Absolute paths of imported names.
    uses: BTreeSet<Vec<String>>,
    /// Names that it exports for another module, with their absolute paths.
    exports: BTreeMap<String, Vec<String>>,
}

impl Tree {
    fn of(files: &[&TextFile]) -> Self {
        let paths: BTreeSet<Vec<String>> = files.iter().map(|file| module_of(&file.path)).collect();
        let read = |file: &&TextFile| (module_of(&file.path), Module::read(file, &paths));
        Self { modules: files.iter().map(read).collect() }
    }

    fn circles(&self) -> Vec<Vec<String>> {
        let edges: BTreeMap<&str, BTreeSet<&str>> = self
            .modules
            .values()
            .map(|module| {
                (module.file.as_str(), module.uses.iter().filter_map(|path| self.file_of(path)).collect())
            })
            .collect();
        let mut search = Search::of(&edges);
        for file in edges.keys() {
            search.visit(file);
        }
        search.circles
    }

    /// The file that defines the last name of `path`.
    fn file_of(&self, path: &[String]) -> Option<&str> {
        let mut path = path.to_vec();
        for _ in 0..HOPS_MAX {
            let depth = (0..=path.len()).rev().find(|depth| self.modules.contains_key(&path[..*depth]))?;
            let module = &self.modules[&path[..depth]];
            match path.get(depth).and_then(|name| module.exports.get(name)) {
                Some(target) => path = [target.as_slice(), &path[depth + 1..]].concat(),
                None => return Some(&module.file),
            }
        }
        None
    }
}

impl Module {
    fn read(file: &TextFile, modules: &BTreeSet<Vec<String>>) -> Self {
        let own = module_of(&file.path);
        let mut module = Self { file: file.path.clone(), uses: BTreeSet::new(), exports: BTreeMap::new() };
        let code = |line: &&str| !line.trim_start().starts_with("//");
        let text: String =
            file.product_lines().map(|(_, line)| line).filter(code).map(|line| format!("{line}\n")).collect();
        module.uses.extend(in_expressions(&text).iter().filter_map(|path| absolute(path, &own, modules)));
        for (is_export, tree) in statements(&text) {
            for path in expand(&tree).iter().filter_map(|path| absolute(path, &own, modules)) {
                match path.last().filter(|_| is_export) {
                    Some(name) => drop(module.exports.insert(name.clone(), path)),
                    None => drop(module.uses.insert(path)),
                }
            }
        }
        module
    }
}

/// `a/src/b/c.rs` is the module `b::c`, as are `b/c/mod.rs`; the root is empty.
fn module_of(path: &str) -> Vec<String> {
    let inside = path.split_once("/src/").map_or(path, |(_, inside)| inside).trim_end_matches(".rs");
    let names = inside.split('/').filter(|name| !["mod", "lib", "main"].contains(name));
    names.map(str::to_string).collect()
}

/// The `use` statements of a text: whether it exports, and the tree behind it.
fn statements(text: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    let mut rest = text.lines().peekable();
    while let Some(line) = rest.next() {
        let line = line.trim_start();
        let bare =
            line.split_once("use ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
        let Some((before, tree)) = bare else { continue };
        let mut tree = tree.to_string();
        while !tree.contains(';') && rest.peek().is_some() {
            tree.push_str(rest.next().unwrap_or_default());
        }
        let tree = tree.split(';').next().unwrap_or_default();
        found.push((before.starts_with("pub"), tree.chars().filter(|c| !c.is_whitespace()).collect()));
    }
    found
}

/// Paths that begin with `crate::` or `super::` in mid-code: `crate::a::f()` imports as `use crate::a::f`
/// does.
fn in_expressions(text: &str) -> Vec<Vec<String>> {
    let is_path = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let words =
        text.lines().filter(|line| !line.contains("use ")).flat_map(|line| line.split(|c| !is_path(c)));
    let paths = words.filter(|word| word.starts_with("crate::") || word.starts_with("super::"));
    let names = |path: &str| path.split("::").filter(|name| !name.is_empty()).map(str::to_string).collect();
    paths.map(names).collect()
}

/// `a::{b,c::{d,self}}` is `a::b`, `a::c::d` and `a::c`. (Spaces are gone, so `x as y` reads `xasy`: such a
/// name is looked up as a part of its module, which is where it leads anyway.)
fn expand(tree: &str) -> Vec<Vec<String>> {
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![tree.split("::").filter(|name| !name.is_empty()).map(str::to_string).collect()];
    };
    let head: Vec<String> = head.split("::").filter(|name| !name.is_empty()).map(str::to_string).collect();
    let inside = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut start, mut parts) = (0_usize, 0, Vec::new());
    for (at, character) in inside.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[start..]);
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    let under = |tail: Vec<String>| head.iter().cloned().chain(tail).filter(|name| name != "self").collect();
    parts.flat_map(expand).map(under).collect()
}

/// The path from the crate's root, if it leads into the crate.
fn absolute(path: &[String], own: &[String], modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    let ups = path.iter().take_while(|name| *name == "super").count();
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "super" => Some([&own[..own.len().saturating_sub(ups)], &path[ups..]].concat()),
        "self" => Some([own, &path[1..]].concat()),
        // A child module needs no `self::`.
        child => {
            let is_child = modules.contains(&[own, &[child.to_string()]].concat());
            is_child.then(|| [own, path].concat())
        }
    }
}

type Edges<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Tarjan's search.
struct Search<'a> {
    edges: &'a Edges<'a>,
    /// The number of each visited file, and the lowest number that it reaches.
    numbers: BTreeMap<&'a str, (usize, usize)>,
    stack: Vec<&'a str>,
    circles: Vec<Vec<String>>,
}

impl<'a> Search<'a> {
    fn of(edges: &'a Edges<'a>) -> Self {
        Self { edges, numbers: BTreeMap::new(), stack: Vec::new(), circles: Vec::new() }
    }

    /// Visits `file` once; returns the lowest number that it reaches on the stack.
    fn visit(&mut self, file: &'a str) -> usize {
        if let Some((_, lowest)) = self.numbers.get(file) {
            return if self.stack.contains(&file) { *lowest } else { usize::MAX };
        }
        let number = self.numbers.len();
        self.numbers.insert(file, (number, number));
        self.stack.push(file);
        let mut lowest = number;
        for next in self.edges.get(file).into_iter().flatten().filter(|next| **next != file) {
            lowest = lowest.min(self.visit(next));
            self.numbers.insert(file, (number, lowest));
        }
        if lowest == number {
            self.close(file);
        }
        lowest
    }

    /// Takes a component, of which `file` was visited first, from the stack.
    fn close(&mut self, file: &'a str) {
        let from = self.stack.iter().position(|other| *other == file).unwrap_or_default();
        let component = self.stack.split_off(from);
        if component.len() > 1 {
            let mut circle: Vec<String> = component.into_iter().map(str::to_string).collect();
            circle.sort();
            self.circles.push(circle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        circles(&SourceTree::of(files))
    }

    #[test]
    fn files_that_import_each_other_are_a_circle() {
        let one_way = ("k/src/b.rs", "use std::fmt;\n");
        assert!(found(&[("k/src/a.rs", "use crate::b::B;\n"), one_way]).is_empty());
        let inline = ("k/src/b.rs", "// crate::c\nfn f() { crate::a::g() }\n");
        assert_eq!(found(&[("k/src/a.rs", "use crate::b::B;\n"), inline]).len(), 1);
        let both =
            found(&[("k/src/a.rs", "use super::b::{self, B};\n"), ("k/src/b.rs", "use crate::a::A;\n")]);
        assert_eq!(both, [["k/src/a.rs", "k/src/b.rs"]]);
    }

    #[test]
    fn a_name_is_followed_through_a_re_export_to_its_file() {
        let facade = ("k/src/lib.rs", "mod a;\nmod b;\npub use a::{A, X};\npub(crate) use b::B;\n");
        let one_way = [facade, ("k/src/a.rs", "use crate::B;\n"), ("k/src/b.rs", "use std::fmt;\n")];
        assert!(found(&one_way).is_empty());
        let both = [facade, ("k/src/a.rs", "use crate::B;\n"), ("k/src/b.rs", "use crate::{\n    A,\n};\n")];
        assert_eq!(found(&both), [["k/src/a.rs", "k/src/b.rs"]]);
    }

    #[test]
    fn a_longer_circle_and_a_file_outside_of_it_are_told_apart() {
        let files = [
            ("k/src/a.rs", "use crate::b::B;\n"),
            ("k/src/b/mod.rs", "mod c;\nuse self::c::C;\n"),
            ("k/src/b/c.rs", "use crate::a::A;\n"),
            ("k/src/d.rs", "use crate::a::A;\nuse crate::b::B;\n"),
        ];
        assert_eq!(found(&files), [["k/src/a.rs", "k/src/b/c.rs", "k/src/b/mod.rs"]]);
    }

    #[test]
    fn nested_trees_are_expanded() {
        let joined: Vec<String> = expand("a::{b,c::{d,self},e}").iter().map(|path| path.join("::")).collect();
        assert_eq!(joined, ["a::b", "a::c::d", "a::c", "a::e"]);
    }
}
