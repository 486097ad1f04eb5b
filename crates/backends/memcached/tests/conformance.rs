//! The Memcached backend passes the conformance kit, over two servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use std::sync::Arc;

use commonhold_core::url::StoreUrl;
use commonhold_memcached::{MemcachedBackend, MemcachedConfig};
use commonhold_testkit::{
    Subject, conformance,
    servers::{shared, unique},
};

conformance!(memcached, 83, || async {
    let url = StoreUrl::parse(shared::memcached_url()).unwrap();
    let config = MemcachedConfig::from_url(url).unwrap().prefix(unique("kit:"));
    Subject::new(Arc::new(MemcachedBackend::open(config).await.unwrap()))
});
