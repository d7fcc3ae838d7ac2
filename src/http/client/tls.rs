//! TLS for questions to peers: whom a node believes behind `https://`.
//!
//! Only the asking side is here. Serving TLS is left to a proxy in front of the peer port; see the
//! README.

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::Error;

/// Believes those whose certificates lead to one of `roots`, which are in PEM; where those are not
/// given, to one that browsers know.
///
/// # Errors
/// [`Error::Config`] if there is no certificate in `roots`.
pub(in crate::http) fn config(roots: Option<&[u8]>) -> Result<TlsConfig, Error> {
    let Some(roots) = roots else { return Ok(TlsConfig::default()) };
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(Error::Config(format!("root_certificates: {error}")))),
    };
    let roots: Vec<_> = parse_pem(roots).filter_map(certificate).collect::<Result<_, _>>()?;
    if roots.is_empty() {
        return Err(Error::Config("root_certificates: no certificate in PEM form".into()));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::from(roots)).build())
}
