//! Finds the primary among servers that are named, or by asking Sentinels.

use std::sync::Arc;

use commonhold_core::{Error, ErrorKind, Result, Retry, url::Endpoint};
use futures_util::FutureExt as _;

use crate::{
    driver::{Connection, Dialer, OnPush, Value, array, bytes, checked, command},
    error::Access,
    node::Dial,
};

/// Connects to the server at this address, whatever it is.
pub(crate) fn at(dialer: Arc<Dialer>, server: Endpoint) -> Dial {
    Arc::new(move |on_push| {
        let (dialer, server) = (Arc::clone(&dialer), server.clone());
        async move { dialer.dial(&server, on_push).await }.boxed()
    })
}

/// Connects to the first of these servers that answers and has this role. One that is alone is taken as it is.
pub(crate) fn among(dialer: Arc<Dialer>, servers: Vec<Endpoint>, role: Role) -> Dial {
    let servers: Arc<[Endpoint]> = servers.into();
    Arc::new(move |on_push| {
        let (dialer, servers) = (Arc::clone(&dialer), Arc::clone(&servers));
        async move {
            if let ([server], Role::Primary) = (&*servers, role) {
                return dialer.dial(server, on_push).await;
            }
            first(&dialer, &servers, role, on_push).await
        }
        .boxed()
    })
}

/// Connects to the server that has this role in the service of this name, as the Sentinels know it.
pub(crate) fn by_sentinels(
    dialer: Arc<Dialer>,
    asking: Arc<Dialer>,
    sentinels: Vec<Endpoint>,
    service: String,
    role: Role,
) -> Dial {
    let (sentinels, service): (Arc<[Endpoint]>, Arc<str>) = (sentinels.into(), service.into());
    Arc::new(move |on_push| {
        let (dialer, asking) = (Arc::clone(&dialer), Arc::clone(&asking));
        let (sentinels, service) = (Arc::clone(&sentinels), Arc::clone(&service));
        async move {
            let servers = ask(&asking, &sentinels, &service, role).await?;
            first(&dialer, &servers, role, on_push).await
        }
        .boxed()
    })
}

/// What a server is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Primary,
    /// A replica, or the primary if there is none.
    Replica,
}

impl Role {
    /// As ROLE says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Primary => "master",
            Self::Replica => "slave",
        }
    }
}

async fn first(
    dialer: &Dialer,
    servers: &[Endpoint],
    role: Role,
    on_push: Option<OnPush>,
) -> Result<Connection> {
    let mut failed = None;
    let mut second_best = None;
    for server in servers {
        match role_of(dialer, server).await {
            Ok((connection, found)) if found == role.name() => match on_push {
                // What it was asked with takes no messages.
                Some(_) => return dialer.dial(server, on_push).await,
                None => return Ok(connection),
            },
            Ok((_, found)) if found == "sentinel" => {
                let message = format!("{server} is a Sentinel; its URL is redis+sentinel://{server}/SERVICE");
                return Err(Error::new(ErrorKind::InvalidConfig, message));
            }
            Ok((connection, _)) => {
                let message = format!("{server} is not the primary");
                failed.get_or_insert_with(|| {
                    Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe)
                });
                second_best.get_or_insert(connection);
            }
            Err(error) if error.kind() == ErrorKind::Unauthorized => return Err(error),
            Err(error) => failed = Some(error),
        }
    }
    match (role, second_best) {
        (Role::Replica, Some(primary)) => Ok(primary),
        _ => Err(failed.unwrap_or_else(|| {
            Error::new(ErrorKind::Unavailable, "no server has this role").with_retry(Retry::Safe)
        })),
    }
}

async fn role_of(dialer: &Dialer, server: &Endpoint) -> Result<(Connection, String)> {
    let connection = dialer.dial(server, None).await?;
    let role = role(&connection).await?;
    Ok((connection, role))
}

/// What the server says that it is.
pub(crate) async fn role(connection: &Connection) -> Result<String> {
    let reply = array(connection.command(Access::Read, &command("ROLE")).await?)?;
    let role = reply.into_iter().next().map(bytes).transpose()?.flatten().unwrap_or_default();
    Ok(String::from_utf8_lossy(&role).into_owned())
}

/// Asks the Sentinels, one after the other until one knows.
async fn ask(dialer: &Dialer, sentinels: &[Endpoint], service: &str, role: Role) -> Result<Vec<Endpoint>> {
    let mut failed = None;
    for sentinel in sentinels {
        match ask_one(dialer, sentinel, service, role).await {
            Ok(servers) => return Ok(servers),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| Error::new(ErrorKind::InvalidConfig, "no Sentinel is named")))
}

async fn ask_one(dialer: &Dialer, sentinel: &Endpoint, service: &str, role: Role) -> Result<Vec<Endpoint>> {
    let connection = dialer.dial(sentinel, None).await?;
    let mut servers = Vec::new();
    if role == Role::Replica {
        let mut replicas = command("SENTINEL");
        replicas.arg("REPLICAS").arg(service);
        for replica in array(connection.command(Access::Read, &replicas).await?)? {
            servers.extend(replica_address(replica));
        }
        fastrand::shuffle(&mut servers);
    }
    let mut primary = command("SENTINEL");
    primary.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
    let reply = checked(connection.command(Access::Read, &primary).await?)?;
    if matches!(reply, Value::Nil) {
        let message = format!("the Sentinel {sentinel} knows no service {service:?}");
        return Err(Error::new(ErrorKind::Unavailable, message).with_retry(Retry::Safe));
    }
    let mut address = array(reply)?.into_iter();
    servers.extend(endpoint(address.next(), address.next()));
    Ok(servers)
}

/// The address of a replica that the Sentinel takes for well.
fn replica_address(fields: Value) -> Option<Endpoint> {
    let pairs: Vec<(Value, Value)> = match fields {
        Value::Map(pairs) => pairs,
        fields => {
            let mut fields = array(fields).ok()?.into_iter();
            std::iter::from_fn(|| Some((fields.next()?, fields.next()?))).collect()
        }
    };
    let (mut host, mut port, mut well) = (None, None, true);
    for (name, value) in pairs {
        match bytes(name).ok()??.as_ref() {
            b"ip" => host = Some(value),
            b"port" => port = Some(value),
            b"flags" => well = !String::from_utf8_lossy(&bytes(value).ok()??).contains("down"),
            _ => {}
        }
    }
    endpoint(host, port).filter(|_| well)
}

pub(crate) fn endpoint(host: Option<Value>, port: Option<Value>) -> Option<Endpoint> {
    let text = |value: Option<Value>| Some(String::from_utf8_lossy(&bytes(value?).ok()??).into_owned());
    Some(Endpoint { host: text(host)?, port: text(port)?.parse().ok()? })
}
