//! State in Redis: one server, a primary that Sentinels watch over, or a Cluster.
mod backend;
mod cluster;
mod config;
mod driver;
mod error;
mod flight;
mod health;
mod keyspace;
mod lanes;
mod listener;
mod node;
mod pool;
mod primary;
mod reads;
mod scan;
mod seen;
mod servers;
mod slot;
mod transaction;
mod transitions;
mod url;
mod watch;
mod writes;

pub use self::{
    backend::RedisBackend,
    config::{ReadFrom, RedisConfig},
    url::OPTIONS,
};
