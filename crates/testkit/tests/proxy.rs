//! The proxy does to connections what its mode says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use commonhold_testkit::proxy::{Mode, Proxy};

/// Sends back what it gets, until the last client that could connect is gone.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = connection.read(&mut buffer) {
                    if connection.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

fn connect(proxy: &Proxy) -> TcpStream {
    let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    connection
}

fn echoes(connection: &mut TcpStream, text: &str) -> bool {
    let mut reply = vec![0; text.len()];
    connection.write_all(text.as_bytes()).is_ok()
        && connection.read_exact(&mut reply).is_ok()
        && reply == text.as_bytes()
}

/// What still comes, and that the connection ends then.
fn rest(connection: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    if let Err(error) = connection.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the connection is open");
    }
    String::from_utf8(rest).unwrap()
}

fn wait_for(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn everything_passes_and_is_counted() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    assert!(echoes(&mut connection, "hello"));
    wait_for(|| proxy.traffic().reply_bytes == 5);
    let traffic = proxy.traffic();
    assert_eq!((traffic.connections, traffic.request_bytes, traffic.lost_reply_bytes), (1, 5, 0));
}

#[test]
fn a_delay_holds_up_each_direction() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    proxy.set(Mode::Delay(Duration::from_millis(50)));
    let begun = Instant::now();
    assert!(echoes(&mut connection, "hello"));
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[test]
fn a_cut_closes_the_connections_and_takes_new_ones() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    assert!(echoes(&mut connection, "hello"));
    proxy.cut();
    assert_eq!(rest(&mut connection), "");
    assert!(echoes(&mut connect(&proxy), "hello"));
}

#[test]
fn closed_connections_are_accepted_first_and_refused_ones_are_not() {
    let proxy = Proxy::before(echo());
    let mut before = connect(&proxy);
    assert!(echoes(&mut before, "hello"));
    proxy.set(Mode::Close);
    assert_eq!(rest(&mut before), "");
    assert_eq!(rest(&mut connect(&proxy)), "");
    proxy.set(Mode::Refuse);
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    proxy.set(Mode::Pass);
    assert!(echoes(&mut connect(&proxy), "hello"));
}

#[test]
fn a_black_hole_swallows_both_directions_for_good() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    assert!(echoes(&mut connection, "hello"));
    proxy.set(Mode::BlackHole);
    connection.write_all(b"swallowed").unwrap();
    wait_for(|| proxy.traffic().lost_request_bytes == 9);
    let mut untouched = connect(&proxy);
    wait_for(|| proxy.traffic().connections == 2);
    proxy.set(Mode::Pass);
    assert_eq!(rest(&mut connection), "");
    assert!(echoes(&mut untouched, "nothing of this one was lost"));
    assert_eq!(proxy.traffic().lost_reply_bytes, 0);
}

#[test]
fn what_was_held_arrives_when_the_network_heals() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    assert!(echoes(&mut connection, "hello"));
    let before = proxy.traffic();
    proxy.set(Mode::Hold);
    connection.write_all(b"late").unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(connection.read(&mut [0; 4]).is_err());
    assert_eq!(proxy.traffic().request_bytes, before.request_bytes);
    proxy.set(Mode::Pass);
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut reply = [0; 4];
    connection.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"late");
}

#[test]
fn lost_replies_belong_to_requests_that_arrived() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    proxy.set(Mode::LoseReplies);
    connection.write_all(b"request").unwrap();
    wait_for(|| proxy.traffic().lost_reply_bytes == 7);
    assert_eq!(proxy.traffic().request_bytes, 7);
    proxy.cut();
    assert_eq!(rest(&mut connection), "");
}

#[test]
fn a_request_is_cut_once_in_its_middle() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    assert!(echoes(&mut connection, "before"));
    proxy.set(Mode::CutRequest(4));
    connection.write_all(b"request").unwrap();
    let rest = rest(&mut connection);
    assert!("requ".starts_with(&rest), "{rest}");
    assert_eq!(proxy.traffic().request_bytes, 6 + 4);
    assert_eq!(proxy.mode(), Mode::Pass);
    assert!(echoes(&mut connect(&proxy), "a longer one passes"));
}

#[test]
fn a_reply_is_cut_once_in_its_middle() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    assert!(echoes(&mut connection, "before"));
    proxy.set(Mode::CutReply(4));
    connection.write_all(b"request").unwrap();
    assert_eq!(rest(&mut connection), "requ");
    assert_eq!(proxy.traffic().request_bytes, 6 + 7);
    assert_eq!(proxy.mode(), Mode::Pass);
    assert!(echoes(&mut connect(&proxy), "a longer one passes"));
}

#[test]
fn a_cut_counts_from_when_it_was_asked_for() {
    let proxy = Proxy::before(echo());
    let mut connection = connect(&proxy);
    proxy.set(Mode::CutReply(5));
    assert!(echoes(&mut connection, "hello"));
    proxy.set(Mode::CutReply(5));
    assert!(echoes(&mut connection, "hello"));
    connection.write_all(b"!").unwrap();
    assert_eq!(rest(&mut connection), "");
}

#[test]
fn a_server_that_does_not_run_closes_connections() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let proxy = Proxy::before(free);
    assert_eq!(rest(&mut connect(&proxy)), "");
}

#[tokio::test]
async fn a_proxy_is_used_and_dropped_on_a_runtime() {
    let proxy = Proxy::before(echo());
    proxy.set(Mode::Refuse);
    proxy.set(Mode::Pass);
    proxy.cut();
}
