//! The servers of a store, however they are arranged: where a request for a key goes.

use std::{fs, sync::Arc, time::Duration};

use bytes::Bytes;
use commonhold_core::{Error, ErrorKind, Result};
use tokio_rustls::TlsConnector;

use crate::{
    cluster::Cluster,
    config::{self, Login, ReadFrom, RedisConfig, Tls},
    driver::{Cmd, Connection, Dialer, Value, checked},
    error::Access,
    node::{Node, Request},
    primary::{Role, among, by_sentinels},
    slot::{slot, slot_of_all},
};

/// The servers of a store.
#[derive(Debug, Clone)]
pub(crate) enum Servers {
    /// One holds all keys.
    One { primary: Arc<Node>, reader: Arc<Node> },
    /// Each holds some. All keys of the store lie in one slot if its prefix has a hash tag.
    Cluster { cluster: Cluster, slot_of_all: Option<u16>, read_from: ReadFrom },
}

impl Servers {
    /// # Errors
    /// `InvalidConfig` if a file with certificates cannot be used.
    pub(crate) fn new(config: &RedisConfig) -> Result<Self> {
        let dialer = dialer(config, &config.login, config.database, false)?;
        let one = |moves, dial: &dyn Fn(Role) -> crate::node::Dial| {
            let primary = dial(Role::Primary);
            let primary = Arc::new(if moves { Node::primary(primary) } else { Node::new(primary) });
            let reader = match config.read_from {
                ReadFrom::Primary => Arc::clone(&primary),
                ReadFrom::Replica => Arc::new(Node::new(dial(Role::Replica))),
            };
            Self::One { primary, reader }
        };
        Ok(match &config.servers {
            config::Servers::Standalone(servers) => {
                one(servers.len() > 1, &|role| among(Arc::clone(&dialer), servers.clone(), role))
            }
            config::Servers::Sentinel { sentinels, service } => {
                let mut asking = Dialer::clone(&*self::dialer(config, &config.sentinel_login, 0, true)?);
                // One of them that is away must not use up the time in which the others would answer.
                asking.connect_timeout = asking.connect_timeout.min(Duration::from_secs(1));
                asking.read_timeout = asking.read_timeout.min(Duration::from_secs(1));
                let asking = Arc::new(asking);
                one(true, &|role| {
                    let (dialer, asking) = (Arc::clone(&dialer), Arc::clone(&asking));
                    by_sentinels(dialer, asking, sentinels.clone(), service.clone(), role)
                })
            }
            config::Servers::Cluster(members) => Self::Cluster {
                cluster: Cluster::new(dialer, members.clone()),
                slot_of_all: slot_of_all(config.prefix.as_bytes()),
                read_from: config.read_from,
            },
        })
    }

    /// Sends a command to the server that holds this key.
    ///
    /// # Errors
    /// Also what the server answers.
    pub(crate) async fn send(&self, key: &[u8], request: &Request) -> Result<Value> {
        checked(match self {
            Self::One { primary, .. } => primary.send(request).await?,
            Self::Cluster { cluster, .. } => cluster.send(key, request).await?,
        })
    }

    /// Sends a read that may be answered by a replica if that is configured.
    pub(crate) async fn read(&self, key: &[u8], request: &Request) -> Result<Value> {
        checked(match self {
            Self::One { reader, .. } => reader.send(request).await?,
            Self::Cluster { cluster, read_from: ReadFrom::Replica, .. } => cluster.read(key, request).await?,
            Self::Cluster { cluster, .. } => cluster.send(key, request).await?,
        })
    }

    /// Sends commands to the servers that hold their keys and returns the replies in order, errors of the servers
    /// among them.
    pub(crate) async fn send_all(
        &self,
        access: Access,
        requests: Vec<(Bytes, Request)>,
        piece: usize,
    ) -> Result<Vec<Result<Value>>> {
        match self {
            Self::One { primary, .. } => {
                let requests: Vec<Request> = requests.into_iter().map(|(_, request)| request).collect();
                Ok(primary.send_all(access, &requests).await?.into_iter().map(checked).collect())
            }
            Self::Cluster { cluster, .. } => {
                let replies = cluster.send_all(access, requests, piece).await;
                Ok(replies.into_iter().map(|reply| reply.and_then(checked)).collect())
            }
        }
    }

    /// Whether all keys of the store lie together, so that commands may have several of them.
    pub(crate) fn are_together(&self) -> bool {
        !matches!(self, Self::Cluster { slot_of_all: None, .. })
    }

    /// The server that holds all keys of the store.
    ///
    /// # Errors
    /// `Unsupported` if there are several.
    pub(crate) async fn home(&self) -> Result<Arc<Node>> {
        match self {
            Self::One { primary, .. } => Ok(Arc::clone(primary)),
            Self::Cluster { cluster, slot_of_all: Some(slot), .. } => cluster.primary(*slot).await,
            Self::Cluster { .. } => Err(crate::error::unsupported(
                "the keys are spread over the nodes of the Cluster; a prefix with a hash tag, as {app}:, would \
                 keep them together",
            )),
        }
    }

    /// Whether the server at the other end of this connection still is [`home`](Self::home), as far as is known
    /// without its being used.
    pub(crate) async fn is_current(&self, connection: &Connection) -> bool {
        match self {
            Self::One { primary, .. } => primary.is_current(connection).await,
            // One that has lost the slot says so to whoever asks for a key.
            Self::Cluster { .. } => true,
        }
    }

    /// Sends commands that are carried out together or not at all.
    pub(crate) async fn send_atomically(&self, commands: &[Cmd]) -> Result<Vec<Value>> {
        let sent = self.home().await?.send_atomically(commands).await;
        self.noting(sent)
    }

    /// Looks anew where slots are when something went wrong.
    pub(crate) fn noting<T>(&self, result: Result<T>) -> Result<T> {
        if let (Self::Cluster { cluster, .. }, Err(_)) = (self, &result) {
            cluster.look_soon();
        }
        result
    }

    /// The server that is asked how it is: the one that holds the empty key.
    pub(crate) async fn any(&self) -> Result<Arc<Node>> {
        match self {
            Self::One { primary, .. } => Ok(Arc::clone(primary)),
            Self::Cluster { cluster, slot_of_all, .. } => {
                cluster.primary(slot_of_all.unwrap_or_else(|| slot(b""))).await
            }
        }
    }

    /// A connection of its own to the server that [`home`](Self::home) is.
    pub(crate) async fn dial_home(&self) -> Result<Connection> {
        let dialed = async { self.home().await?.dial(None).await };
        self.noting(dialed.await)
    }
}

fn dialer(config: &RedisConfig, login: &Login, database: u32, sentinel: bool) -> Result<Arc<Dialer>> {
    let tls = match &config.tls {
        None => None,
        Some(tls) => Some((connector(tls)?, tls.server_name.clone())),
    };
    Ok(Arc::new(Dialer {
        login: login.clone(),
        database,
        tls,
        connect_timeout: config.connect_timeout,
        read_timeout: config.read_timeout,
        write_timeout: config.write_timeout,
        resp2: sentinel,
    }))
}

/// What encrypts connections and checks certificates.
fn connector(tls: &Tls) -> Result<TlsConnector> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    let invalid = |message: String| Error::new(ErrorKind::InvalidConfig, message);
    let mut roots = rustls::RootCertStore::empty();
    let certificates: Vec<CertificateDer<'_>> = match &tls.ca {
        None => rustls_native_certs::load_native_certs().certs,
        Some(file) => {
            let shown = file.display();
            let pem = fs::read(file)
                .map_err(|error| invalid(format!("tls_ca: {shown} cannot be read: {error}")))?;
            let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>();
            certificates.map_err(|error| invalid(format!("tls_ca: {shown} is not in PEM: {error}")))?
        }
    };
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err(invalid(match &tls.ca {
            None => "the system has no certificates to trust; name some with tls_ca".to_owned(),
            Some(file) => format!("tls_ca: {} holds no certificate", file.display()),
        }));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(format!("TLS: {error}")))?;
    let client = client.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(client)))
}
