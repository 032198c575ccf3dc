//! Dial address of a peer: an IP address, or a name that is resolved for every connection.
//!
//! A name's addresses may change while this process runs, so no result is kept for the next connection.

use futures::future::BoxFuture;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Most addresses of one name that are tried for one connection.
pub(crate) const TRIED_MAX: usize = 4;

/// `host:port`, where the host is an address or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(Host);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Known(SocketAddr),
    Named(Arc<str>),
}

/// Error for a text that is not `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not host:port")]
pub struct NotAnAddress(String);

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if let Ok(known) = text.parse() {
            return Ok(Self(Host::Known(known)));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if is_name(host) && port.parse().is_ok_and(|port: u16| port > 0) => {
                Ok(Self(Host::Named(text.into())))
            }
            _ => Err(NotAnAddress(text.into())),
        }
    }
}

fn is_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self(Host::Known(address))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Host::Known(address) => address.fmt(f),
            Host::Named(name) => f.write_str(name),
        }
    }
}

/// The resolver of names.
#[derive(Clone)]
pub(crate) struct NameResolver(Arc<Resolve>);

type ResolvedAddresses = io::Result<Vec<SocketAddr>>;
type Resolve = dyn Fn(Arc<str>) -> BoxFuture<'static, ResolvedAddresses> + Send + Sync;

impl std::fmt::Debug for NameResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NameResolver")
    }
}

impl NameResolver {
    /// Resolves as the operating system does.
    pub(crate) fn system() -> Self {
        Self::with(|name| Box::pin(async move { Ok(tokio::net::lookup_host(&*name).await?.collect()) }))
    }

    pub(crate) fn with(
        resolver: impl Fn(Arc<str>) -> BoxFuture<'static, ResolvedAddresses> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(resolver))
    }

    /// Returns the addresses to dial now, at least one.
    pub(crate) async fn of(&self, address: &Address) -> ResolvedAddresses {
        let found = match &address.0 {
            Host::Known(address) => vec![*address],
            Host::Named(name) => (self.0)(name.clone()).await?,
        };
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_distinguished_and_round_trip() {
        for text in ["10.0.0.1:7600", "[2001:db8::1]:7600", "control-1.example:7600", "localhost:1"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "host", ":7600", "host:", "host:0", "host:65536", "a b:1", "2001:db8::1", "host:1:2"]
        {
            assert_eq!(text.parse::<Address>(), Err(NotAnAddress(text.into())), "{text}");
        }
    }
}
