//! Pages of lists, as Google's AIP-158 has them: `page_size`, `page_token` and `next_page_token`.
//!
//! That style lets an answer hold fewer items than asked for, which bounds its bytes, and its tokens need no
//! state: they hold the key of the last item read. Each list is in the order of its keys. A page therefore
//! continues behind the last item regardless of changes, and every item that stays is read once.

use super::problem::Failure;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use protocol::error_code;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::str::FromStr;

/// Number of items of a page unless the request names another.
const ITEMS_DEFAULT: usize = 100;
/// Most items of a page; a larger `page_size` means this one.
const ITEMS_MAX: usize = 500;
/// Most bytes of a page's items as JSON, unless the first is larger: read in a second at 16 Mbit/s.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A list that is read in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PagedList {
    /// Grants of access that stand, by id.
    Grants,
    /// Halts that stand, by id.
    Halts,
    /// Decisions of the circle, by their number.
    History,
    /// Stored data of jobs, by root.
    JobData,
    /// Models, by root.
    Models,
    /// Proposals, by id.
    Proposals,
    /// Totals of usage, by day, name and submitter.
    Usage,
    /// Entries of usage, by number.
    UsageEntries,
}

impl PagedList {
    fn name(self) -> &'static str {
        match self {
            Self::Grants => "grants",
            Self::Halts => "halts",
            Self::History => "history",
            Self::JobData => "job-data",
            Self::Models => "models",
            Self::Proposals => "proposals",
            Self::Usage => "usage",
            Self::UsageEntries => "usage-entries",
        }
    }

    /// Returns the token of the page that continues behind this key.
    fn token(self, key: impl Display) -> String {
        hex::encode(format!("{}/{key}", self.name()))
    }

    /// Returns the key in a token of this list.
    fn key<K: FromStr>(self, token: &str) -> Option<K> {
        let text = String::from_utf8(hex::decode(token).ok()?).ok()?;
        text.strip_prefix(self.name())?.strip_prefix('/')?.parse().ok()
    }
}

/// Query parameters of a list that is read in pages.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PageParameters {
    /// Most items of the page; 0 means 100, and more than 500 means 500. A page may hold fewer.
    #[param(minimum = 0)]
    page_size: Option<i64>,
    /// `next_page_token` of the page before; none asks for the first page.
    page_token: Option<String>,
}

/// Query parameters of the history.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryParameters {
    /// Most items of the page; 0 means 100, and more than 500 means 500. A page may hold fewer.
    #[param(minimum = 0)]
    page_size: Option<i64>,
    /// `next_page_token` of the page before; none asks for the first page.
    page_token: Option<String>,
    /// Number of decisions that the client has: the first page begins behind them, without the genesis.
    after: Option<u64>,
    /// True if a replica that does not lead may answer, with what it last applied.
    any_replica: Option<bool>,
}

impl HistoryParameters {
    /// Returns whether the client takes what any replica has.
    pub(super) fn takes_any_replica(&self) -> bool {
        self.any_replica == Some(true)
    }
}

/// Returns a number of the parameter `after`, if JSON clients can write it: OpenAPI's `int64`.
pub(super) fn json_number(after: u64) -> Result<u64, Failure> {
    i64::try_from(after).map(i64::unsigned_abs).map_err(|_| {
        let message = format!("`after` is at most {}", i64::MAX);
        Failure::new(error_code::REQUEST_INVALID, message).at("query after")
    })
}

/// A page to read: at most `items` items behind the key `after`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageRequest<K> {
    list: PagedList,
    items: usize,
    pub(super) after: Option<K>,
}

impl PageRequest<u64> {
    /// Reads the request for a page of the history.
    ///
    /// # Errors
    /// As [`PageRequest::of`], and `request-invalid` for a token beside `after`, or for too large a number.
    pub(super) fn of_history(
        query: Result<Query<HistoryParameters>, QueryRejection>,
    ) -> Result<Self, Failure> {
        let Query(HistoryParameters { page_size, page_token, after, any_replica: _ }) = query?;
        if page_token.is_some() && after.is_some() {
            let failure = Failure::new(error_code::REQUEST_INVALID, "the token names a place already");
            return Err(failure.at("query after"));
        }
        let page = Self::of(PagedList::History, Ok(Query(PageParameters { page_size, page_token })))?;
        Ok(Self { after: page.after.or(after.map(json_number).transpose()?), ..page })
    }
}

impl<K: FromStr + Display> PageRequest<K> {
    /// Reads the request for a page of this list.
    ///
    /// # Errors
    /// `request-invalid` for unknown parameters or a negative size, and `page-token-invalid` for a token of
    /// another list or of none.
    pub(super) fn of(
        list: PagedList,
        query: Result<Query<PageParameters>, QueryRejection>,
    ) -> Result<Self, Failure> {
        let Query(PageParameters { page_size, page_token }) = query?;
        let items = match usize::try_from(page_size.unwrap_or(0)) {
            Ok(0) => ITEMS_DEFAULT,
            Ok(items) => items.min(ITEMS_MAX),
            Err(_) => {
                let failure = Failure::new(error_code::REQUEST_INVALID, "the number is negative");
                return Err(failure.at("query page_size"));
            }
        };
        let key = |token: String| {
            list.key(&token).ok_or_else(|| {
                let message = format!("no page of the list of {} named this token", list.name());
                Failure::new(error_code::PAGE_TOKEN_INVALID, message)
                    .at("query page_token")
                    .remedy("pass `next_page_token` of the page before, or begin without a token")
            })
        };
        let after = page_token.map(key).transpose()?;
        Ok(Self { list, items, after })
    }

    /// Returns the first of the items, each behind its key, and the token of the next page. The items begin
    /// behind [`PageRequest::after`] and are taken one by one, as long as the page has space.
    pub(super) fn take<T: Serialize>(&self, items: impl Iterator<Item = (K, T)>) -> (Vec<T>, Option<String>) {
        let mut page = Vec::new();
        let (mut bytes, mut last) = (0_usize, None);
        for (key, item) in items {
            let size = serde_json::to_vec(&item).expect("API types are JSON").len();
            bytes = bytes.saturating_add(size);
            let is_full = page.len() == self.items || (bytes > PAGE_BYTES_MAX && !page.is_empty());
            if is_full {
                return (page, last.map(|last| self.list.token(last)));
            }
            page.push(item);
            last = Some(key);
        }
        (page, None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use axum::http::Uri;
    use std::collections::BTreeMap;

    fn request<K: FromStr + Display>(list: PagedList, query: &str) -> Result<PageRequest<K>, Failure> {
        let uri: Uri = format!("http://replica/v1/list?{query}").parse().unwrap();
        PageRequest::of(list, Query::try_from_uri(&uri))
    }

    /// Reads a whole list in pages of this size, changing it before each page.
    fn read_all(
        items: &mut BTreeMap<u64, String>,
        size: usize,
        mut change: impl FnMut(usize, &mut BTreeMap<u64, String>),
    ) -> Vec<Vec<String>> {
        let (mut pages, mut token) = (Vec::new(), String::new());
        loop {
            change(pages.len(), items);
            let page: PageRequest<u64> =
                request(PagedList::Models, &format!("page_size={size}{token}")).unwrap();
            let after = page.after.map_or(0, |after| after + 1);
            let (found, next) = page.take(items.range(after..).map(|(key, item)| (*key, item.clone())));
            pages.push(found);
            match next {
                Some(next) => token = format!("&page_token={next}"),
                None => return pages,
            }
        }
    }

    fn letters() -> BTreeMap<u64, String> {
        (0..7).map(|key| (2 * key, key.to_string())).collect()
    }

    #[test]
    fn pages_continue_each_other_and_the_last_names_no_next() {
        for (size, expected) in [(3, vec![3, 3, 1]), (7, vec![7]), (0, vec![7]), (6, vec![6, 1])] {
            let pages = read_all(&mut letters(), size, |_, _| {});
            assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), expected, "{size}");
            assert_eq!(pages.concat(), ["0", "1", "2", "3", "4", "5", "6"], "{size}");
        }
        assert_eq!(read_all(&mut BTreeMap::new(), 3, |_, _| {}), [Vec::<String>::new()]);
    }

    /// Items come, go and are replaced between two pages; every item that stays is read exactly once.
    #[test]
    fn a_list_that_changes_between_pages_is_read_consistently() {
        let pages = read_all(&mut letters(), 2, |page, items| {
            if page == 1 {
                // The last item read goes, one before it comes, and one behind it comes.
                items.remove(&2);
                items.insert(1, "before".into());
                items.insert(5, "behind".into());
            }
        });
        assert_eq!(pages.concat(), ["0", "1", "2", "behind", "3", "4", "5", "6"]);
    }

    #[test]
    fn a_page_is_bounded_in_bytes_and_holds_one_item_at_least() {
        let large = "a".repeat(PAGE_BYTES_MAX / 2);
        let mut items: BTreeMap<u64, String> = (0..4).map(|key| (key, large.clone())).collect();
        items.insert(9, "b".repeat(2 * PAGE_BYTES_MAX));
        let pages = read_all(&mut items, 0, |_, _| {});
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 1, 1]);
        let half: BTreeMap<u64, String> = (0..4).map(|key| (key, "a".repeat(PAGE_BYTES_MAX / 3))).collect();
        let pages = read_all(&mut half.clone(), 0, |_, _| {});
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn a_size_above_the_limit_means_the_limit() {
        for (query, expected) in [("", 100), ("page_size=0", 100), ("page_size=9", 9), ("page_size=501", 500)]
        {
            assert_eq!(request::<u64>(PagedList::History, query).unwrap().items, expected, "{query}");
        }
        let refused = request::<u64>(PagedList::History, "page_size=-1").unwrap_err();
        assert_eq!(refused.problem().code, "request-invalid");
        let refused = request::<u64>(PagedList::History, "limit=3").unwrap_err();
        assert_eq!(refused.problem().code, "request-invalid");
    }

    #[test]
    fn a_token_of_another_list_or_of_none_is_refused() {
        let own = PagedList::History.token(7);
        let read = |token: &str| request::<u64>(PagedList::History, &format!("page_token={token}"));
        assert_eq!(read(&own).unwrap().after, Some(7));
        let foreign = PagedList::Proposals.token(7);
        let mut damaged = own.clone();
        damaged.pop();
        for token in [foreign.as_str(), &damaged, "", "7", "zz", &hex::encode("history/"), &hex::encode("x")]
        {
            let refused = read(token).unwrap_err();
            let problem = refused.problem();
            assert_eq!(problem.code, "page-token-invalid", "{token}");
            assert_eq!(problem.at.as_deref(), Some("query page_token"), "{token}");
        }
    }
}
