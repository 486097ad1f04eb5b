//! One server and the ways to it.

use std::sync::Arc;

use commonhold_core::Result;

use crate::{connect::Connector, gathered::Gathered, lanes::Lanes, pool::Pool};

/// The connections to the primary, or to one replica.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) connector: Arc<Connector>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) pool: Pool,
    pub(crate) gathered: Gathered,
}

impl Server {
    /// Connects to nothing yet.
    pub(crate) fn new(connector: &Arc<Connector>) -> Result<Self> {
        let lanes = Arc::new(Lanes::new(connector));
        Ok(Self {
            connector: Arc::clone(connector),
            pool: Pool::new(connector)?,
            gathered: Gathered::new(&lanes),
            lanes,
        })
    }
}
