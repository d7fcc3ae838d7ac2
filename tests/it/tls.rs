//! Peers behind `https://`: a real node with an end of TLS in front of it, as a proxy would be.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use geecache::{Error, PeerError};
use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};

use crate::support::*;

/// Somebody whose signature under a certificate can be believed.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `host`, and its key.
    fn sign(&self, host: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.into()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    /// Both, one behind the other.
    pub(crate) fn pem_for(&self, host: &str) -> String {
        let (certificate, key) = self.sign(host);
        certificate.pem() + &key.serialize_pem()
    }

    /// What a client needs to believe those that it has signed for.
    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }

    /// What a server needs to be `host`.
    fn certify(&self, host: &str) -> Arc<ServerConfig> {
        let (certificate, key) = self.sign(host);
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.into()], key.into());
        Arc::new(config.unwrap())
    }
}

/// The end of TLS: hands what it deciphers to a node, and enciphers what that answers.
pub(crate) struct TlsEnd {
    /// `https://127.0.0.1:port`, whatever the certificate says.
    pub(crate) url: String,
    stub: Stub,
}

impl TlsEnd {
    /// In front of the node at `url`, with a certificate of `authority` for `host`.
    pub(crate) fn of(url: &str, authority: &Authority, host: &str) -> Self {
        let config = authority.certify(host);
        let address = address_of(url).to_string();
        let stub = Stub::raw(move |client| {
            let node = TcpStream::connect(&address).unwrap();
            node.set_read_timeout(Some(LONG)).unwrap();
            relay(&client, &node, ServerConnection::new(config.clone()).unwrap());
        });
        Self { url: secure(&stub.url), stub }
    }
}

fn secure(url: &str) -> String {
    url.replace("http://", "https://")
}

fn relay(client: &TcpStream, node: &TcpStream, session: ServerConnection) {
    // Guards the session, and who writes to the client.
    let session = Mutex::new(session);
    thread::scope(|scope| {
        scope.spawn(|| {
            pump(node, |plain| {
                let mut session = session.lock().unwrap();
                session.writer().write_all(plain).is_ok() && flush(&mut session, client)
            });
            let _ = client.shutdown(Shutdown::Both);
        });
        pump(client, |mut enciphered| {
            let mut session = session.lock().unwrap();
            let mut plain = Vec::new();
            let mut is_well = true;
            while is_well && !enciphered.is_empty() {
                session.read_tls(&mut enciphered).unwrap();
                is_well = session.process_new_packets().is_ok();
                let _ = session.reader().read_to_end(&mut plain); // to where more has to come
            }
            let is_told = flush(&mut session, client); // also of what went wrong
            drop(session);
            let mut node = node;
            is_well && is_told && node.write_all(&plain).is_ok()
        });
        let _ = node.shutdown(Shutdown::Both);
    });
}

/// Gives what comes to `take`, until that refuses or nothing comes any more.
fn pump(mut from: &TcpStream, mut take: impl FnMut(&[u8]) -> bool) {
    let mut part = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut part) {
        if !take(&part[..n]) {
            return;
        }
    }
}

fn flush(session: &mut ServerConnection, mut client: &TcpStream) -> bool {
    while session.wants_write() {
        if session.write_tls(&mut client).is_err() {
            return false;
        }
    }
    true
}

/// Why `asker` could not remove `key` from its only peer.
fn complaint(asker: &Node, key: &str) -> PeerError {
    match asker.group().remove(key) {
        Err(Error::RemoveIncomplete { failed }) => failed.into_iter().next().unwrap().1,
        other => panic!("{other:?}"),
    }
}

#[test]
fn gets_batches_and_removals_pass_through_tls_beside_peers_without() {
    let origin = Origin::of_all();
    let authority = Authority::new();
    let [owner] = Cluster::over(&origin).token("secret").start();
    let [plain] = Cluster::over(&origin).token("secret").start();
    let end = TlsEnd::of(&owner.url, &authority, "127.0.0.1");
    let [asker] = Cluster::over(&origin)
        .token("secret")
        .root_certificates(&authority.pem())
        .peer(&end.url)
        .peer(&plain.url)
        .start();
    let keys_of = |url: &str| asker.keys_of(url).take(50).collect::<Vec<_>>();
    let (keys, plain_keys) = (keys_of(&end.url), keys_of(&plain.url));
    for key in keys[..25].iter().chain(&plain_keys) {
        assert_eq!(asker.get(key), Some(value_of(key)));
    }
    assert_eq!(end.stub.connections(), 1, "it is kept");
    assert_eq!((owner.stats().peer_requests, plain.stats().peer_requests), (25, 50));
    let values: Vec<_> = keys.iter().map(|key| Some(value_of(key))).collect();
    assert_eq!(asker.get_many(&keys), values);
    together(16, |i| assert_eq!(asker.get(&keys[i]), Some(value_of(&keys[i]))));
    let stats = asker.stats();
    assert_eq!((stats.peer_errors, stats.local_loads, origin.loads()), (0, 0, 100));

    asker.group().remove(&keys[0]).unwrap();
    assert_eq!(asker.get(&keys[0]), Some(value_of(&keys[0])));
    assert_eq!(origin.loads(), 101);
    asker.group().clear().unwrap();
    assert_eq!(owner.stats().main.entries + plain.stats().main.entries, 0);
    check_identities([&asker, &owner, &plain]);
}

#[test]
fn a_value_of_many_records_arrives_whole() {
    let bytes = |key: &str| key.repeat((4 << 20) / key.len()).into_bytes();
    let origin = Origin::new(move |key: &str| Ok::<_, PeerError>(Some(bytes(key))));
    let authority = Authority::new();
    let [owner] = Cluster::over(&origin).start();
    let end = TlsEnd::of(&owner.url, &authority, "127.0.0.1");
    let [asker] = Cluster::over(&origin).root_certificates(&authority.pem()).peer(&end.url).start();
    let key = asker.key_of(&end.url);
    assert!(asker.group().get(&key).unwrap().unwrap() == bytes(&key)[..]);
    assert_eq!(asker.stats().peer_loads, 1);
}

#[test]
fn who_cannot_prove_to_be_the_peer_is_told_nothing_and_the_log_says_why() {
    let origin = Origin::of_all();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let [owner] = Cluster::over(&origin).token("secret").start();
    let of_another_root = TlsEnd::of(&owner.url, &theirs, "127.0.0.1");
    let of_another_host = TlsEnd::of(&owner.url, &ours, "127.0.0.2");
    let is_right = TlsEnd::of(&owner.url, &ours, "127.0.0.1");
    let plain = Stub::raw(|mut stream| {
        let _ = stream.write_all(&response(400, "text/plain", "no TLS here"));
        let _ = io::copy(&mut stream, &mut io::sink()); // or what is unread would reset it
    });
    let no_tls = secure(&plain.url);
    for (url, roots, why) in [
        (&of_another_root.url, Some(&ours), "BadSignature"), // though of the same name
        (&is_right.url, None, "UnknownIssuer"),
        (&of_another_host.url, Some(&ours), "not valid for name"),
        (&no_tls, Some(&ours), "InvalidContentType"),
    ] {
        let mut cluster = Cluster::over(&origin).token("secret").peer(url);
        if let Some(roots) = roots {
            cluster = cluster.root_certificates(&roots.pem());
        }
        let [asker] = cluster.start();
        let key = asker.key_of(url);
        assert_eq!(asker.get(&key), Some(value_of(&key)));
        assert_eq!((asker.stats().peer_loads, asker.stats().fallbacks), (0, 1), "{why}");
        assert!(!asker.believes_in_its_peer(), "{why}");
        // What a removal says, the log says of the get.
        let error = complaint(&asker, &key);
        assert!(matches!(&error, PeerError::Transport(text) if text.contains(why)), "{error}");
    }
    assert_eq!(owner.stats().gets, 0);
}

#[test]
fn a_peer_that_is_silent_instead_of_shaking_hands_costs_no_more_than_the_deadline() {
    let (mute, origin) = (Stub::mute(), Origin::of_all());
    let url = secure(&mute.url);
    let timeout = Duration::from_millis(200);
    let [asker] = Cluster::over(&origin).timeout(timeout).peer(&url).start();
    let key = asker.key_of(&url);
    assert_eq!(asker.get(&key), Some(value_of(&key)));
    assert_eq!((asker.stats().fallbacks, asker.believes_in_its_peer()), (1, false));
    assert_eq!(complaint(&asker, &key), PeerError::Timeout);
}
