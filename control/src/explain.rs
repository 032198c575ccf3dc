//! `quorate explain CODE`: the pages of `docs/errors`, compiled into the binary.

/// All pages, each with its code.
static PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

/// Returns the page of a code. OpenAI-shaped errors write their codes with underscores, so both forms are
/// accepted.
#[must_use]
pub fn page(code: &str) -> Option<&'static str> {
    let code = code.replace('_', "-");
    PAGES.iter().find(|(name, _)| *name == code).map(|(_, text)| *text)
}

/// Returns codes that resemble an unknown one, best match first.
#[must_use]
pub fn similar(code: &str) -> Vec<&'static str> {
    let words: Vec<&str> = code.split(['-', '_', ' ']).filter(|word| word.len() > 2).collect();
    let shared = |name: &str| words.iter().filter(|word| name.contains(**word)).count();
    let mut names: Vec<&str> = PAGES.iter().map(|(name, _)| *name).filter(|name| shared(name) > 0).collect();
    names.sort_by_key(|name| std::cmp::Reverse(shared(name)));
    names.truncate(5);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page_that_says_what_to_do() {
        for code in protocol::error_code::ALL {
            let page = page(code.as_str()).unwrap_or_else(|| panic!("docs/errors/{code}.md is missing"));
            assert!(page.starts_with(&format!("# {code}")), "{code} begins with its code");
            assert!(page.contains("## What to do"), "{code} says what to do");
        }
    }

    #[test]
    fn a_code_as_openai_clients_see_it_is_explained() {
        assert!(page("model_not_found").is_some_and(|page| page.starts_with("# model-not-found")));
    }

    #[test]
    fn a_misspelt_code_finds_its_neighbours() {
        assert!(similar("manifest-invalidd").contains(&"manifest-invalid"));
    }
}
