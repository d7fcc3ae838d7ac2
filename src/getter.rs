//! `Getter`: the origin, the slow source of data behind the cache; `Loaded`: a value of it.
//!
//! How is a key loaded that no cache has? By code of the user. A closure will do, and bytes or text
//! that it returns become a [`Loaded`].
//! [`Group`](crate::Group) calls it.

use std::time::Duration;

/// The error of a getter, of any kind.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Loads a key from the origin.
///
/// Every closure `Fn(&str) -> Result<Option<V>, E>` is one, where `V` is bytes, text or
/// [`Loaded`], and `E` is any error; its argument has to be typed, `|key: &str|`. It is called by
/// several threads at once, but by one at a time for each key of a process; except that after a
/// removal a key is loaded anew while a load from before the removal may still run.
///
/// Give it a deadline of its own, shorter than [`PoolOptions::timeout`](crate::PoolOptions::timeout):
/// nothing else ends a load. Without one, an origin that hangs holds the thread that loads until it answers,
/// the others that want the key for [`load_timeout`](crate::GroupBuilder::load_timeout), and the
/// server's workers one after the other. With one, its error reaches all callers that wait; a process that has
/// asked the owner then tries once more, unless [told not to](crate::GroupBuilder::retry_failed_loads).
///
/// A getter may ask its own group for other keys, as long as these do not ask back. If it asks for
/// the key that it is loading, or for one that this thread is loading further up its stack or in
/// the same batch, the answer is [`Error::Recursive`](crate::Error::Recursive). If two threads load
/// a key each and each getter asks for the other's, one of them gets that error.
///
/// ```
/// # use geecache::Group;
/// let squares = Group::builder("squares", |key: &str| {
///     key.parse::<u64>().map(|n| Some((n * n).to_string()))
/// })
/// .build()?;
/// assert_eq!(squares.get("12")?.unwrap(), "144");
/// assert!(squares.get("twelve").is_err());
/// # Ok::<(), geecache::Error>(())
/// ```
#[doc(alias = "GetterFunc")]
pub trait Getter: Send + Sync {
    /// The value of `key`; `Ok(None)` if the origin has no such key; an error if that could not be
    /// found out. Errors are returned to the callers and never cached.
    fn get(&self, key: &str) -> Result<Option<Loaded>, BoxError>;

    /// The same for many keys at once, in their order, one answer for each; or an error for all of
    /// them, which each caller then has as its [`source`](std::error::Error::source). Default: one
    /// key after the other; if the origin is a database, one query can do it. The whole call should
    /// take less time than a peer waits for its answer,
    /// [`PoolOptions::timeout`](crate::PoolOptions::timeout).
    fn get_many(&self, keys: &[&str]) -> Result<Vec<Result<Option<Loaded>, BoxError>>, BoxError> {
        Ok(keys.iter().map(|key| self.get(key)).collect())
    }
}

impl<F, V, E> Getter for F
where
    F: Fn(&str) -> Result<Option<V>, E> + Send + Sync,
    V: Into<Loaded>,
    E: Into<BoxError>,
{
    fn get(&self, key: &str) -> Result<Option<Loaded>, BoxError> {
        match self(key) {
            Ok(value) => Ok(value.map(Into::into)),
            Err(error) => Err(error.into()),
        }
    }
}

/// A value as it comes from the origin or from a peer, with its time to live.
///
/// ```
/// # use geecache::Loaded;
/// # use std::time::Duration;
/// let token = Loaded::from("abc").ttl(Duration::from_secs(60));
/// assert_eq!(token.ttl, Some(Duration::from_secs(60)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The value.
    pub value: Vec<u8>,
    /// How long the value may be kept from now on; `None`, the default: as long as the group says.
    pub ttl: Option<Duration>,
}

impl Loaded {
    /// The same value with a time to live.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }
}

/// Bytes, text, or a view of such as a cache gives.
impl<V: Into<Vec<u8>>> From<V> for Loaded {
    fn from(value: V) -> Self {
        Self { value: value.into(), ttl: None }
    }
}
