//! Stores of the tests' own.

use std::{any::Any, time::Duration};

use commonhold::Store;
use commonhold_testkit::servers::{
    shared::{memcached_url, postgres_url, redis_cluster_url, redis_url},
    unique,
};

/// Much longer than anything takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A URL of a store with nothing in it, and what must live as long as it is used.
pub(crate) struct Place {
    pub(crate) url: String,
    _kept: Option<Box<dyn Any + Send>>,
}

impl Place {
    fn new(url: String) -> Self {
        Self { url, _kept: None }
    }

    pub(crate) fn redis() -> Self {
        Self::new(format!("{}?prefix={}:", redis_url(), unique("p")))
    }

    pub(crate) fn cluster() -> Self {
        Self::new(format!("{}?prefix={{{}}}:", redis_cluster_url(), unique("p")))
    }

    pub(crate) fn postgres() -> Self {
        Self::new(format!("{}?table={}", postgres_url(), unique("t")))
    }

    pub(crate) fn memcached() -> Self {
        Self::new(format!("{}?prefix={}:", memcached_url(), unique("p")))
    }

    pub(crate) fn disk() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            url: format!("disk:{}", directory.path().join("state").display()),
            _kept: Some(Box::new(directory)),
        }
    }

    pub(crate) fn memory() -> Self {
        Self::new("memory:".into())
    }

    pub(crate) async fn open(&self) -> Store {
        commonhold::open(&self.url).await.unwrap()
    }
}
