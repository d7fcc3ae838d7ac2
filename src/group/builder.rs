//! `GroupBuilder`: a group's settings and their defaults.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::handover::Disowned;
use super::refresh::Attempts;
use super::remove::Removals;
use super::{Group, Hasher, MAX_GROUP_BYTES};
use crate::cache::{Cache, Eviction};
use crate::elastic::Elastic;
use crate::flight::Flight;
use crate::peer::NoPeers;
use crate::stats::Counters;
use crate::warnings::Warnings;
use crate::{Clock, Error, Getter, PeerPicker};

/// Settings of a [`Group`]; each has a default.
#[must_use = "`build` makes the group"]
pub struct GroupBuilder {
    pub(super) name: String,
    pub(super) getter: Box<dyn Getter>,
    peers: Option<Arc<dyn PeerPicker>>,
    max_bytes: usize,
    hot_bytes: Option<usize>,
    eviction: Eviction,
    pub(super) ttl: Option<Duration>,
    pub(super) ttl_jitter: f64,
    pub(super) negative_ttl: Option<Duration>,
    pub(super) hot_ttl: Duration,
    pub(super) load_timeout: Duration,
    pub(super) retry_failed_loads: bool,
    pub(super) refresh_ahead: Duration,
    pub(super) stale_if_error: Duration,
    pub(super) clock: Clock,
}

impl fmt::Debug for GroupBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Group {
    /// Begins a group: its name, which is the same in all processes that share it, and its getter.
    ///
    /// If the format of the values changes with a deploy, change the name too, as from `users.1` to
    /// `users.2`: else old and new processes give each other values that they cannot read. Meanwhile
    /// each kind loads by itself, since the other does not have its group, and removals reach the
    /// processes of one kind.
    #[doc(alias = "NewGroup")]
    pub fn builder(name: impl Into<String>, getter: impl Getter + 'static) -> GroupBuilder {
        GroupBuilder {
            name: name.into(),
            getter: Box::new(getter),
            peers: None,
            max_bytes: 64 << 20,
            hot_bytes: None,
            eviction: Eviction::default(),
            ttl: None,
            ttl_jitter: 0.0,
            negative_ttl: None,
            hot_ttl: Duration::from_secs(30),
            load_timeout: Duration::from_secs(60),
            retry_failed_loads: true,
            refresh_ahead: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            clock: Clock::real(),
        }
    }
}

/// The threads of a group for its renewals, and as many for the rest; and the jobs that may wait for each.
pub(super) const MOST_THREADS: usize = 4;
pub(super) const MOST_JOBS: usize = 256;

impl GroupBuilder {
    /// The budget of both caches together, in bytes: keys, values and 80 bytes for each entry. Default:
    /// 64 MiB.
    ///
    /// The process takes a few percent more. After a change from small to large values it can be half
    /// as much again, in gaps that the allocator keeps: `guide::measured` says how to avoid that.
    #[doc(alias = "cacheBytes")]
    pub fn max_bytes(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// The part of [`max_bytes`](Self::max_bytes) for copies of other nodes' keys; 0 keeps none.
    /// Default: an eighth of it, or 0 without [`peers`](Self::peers).
    pub fn hot_bytes(self, hot_bytes: usize) -> Self {
        Self { hot_bytes: Some(hot_bytes), ..self }
    }

    /// Which entries are evicted when the budget is used up. Default: [`Eviction::S3Fifo`].
    pub fn eviction(self, eviction: Eviction) -> Self {
        Self { eviction, ..self }
    }

    /// How long values live if the getter does not say. Default: until they are evicted.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    /// Shortens the life of each value by a random part of its time to live, up to this fraction (0
    /// to 1), so that values that were loaded together do not expire together. Default: 0.
    pub fn ttl_jitter(self, fraction: f64) -> Self {
        Self { ttl_jitter: fraction, ..self }
    }

    /// How long the owner of a key remembers that the origin has no such key; that counts against
    /// the budget like a value. Other processes keep no copy of it and ask the owner each time. Default:
    /// not at all, each get asks the origin again.
    pub fn negative_ttl(self, ttl: Duration) -> Self {
        Self { negative_ttl: Some(ttl), ..self }
    }

    /// How long a copy of another node's key lives at the most, and a value whose key this node no
    /// longer owns, counted from that change; never longer than the value's own life. Default: 30
    /// seconds.
    pub fn hot_ttl(self, hot_ttl: Duration) -> Self {
        Self { hot_ttl, ..self }
    }

    /// How long a get, or a whole batch, waits for other threads that are loading the same keys. Default: 60
    /// seconds. The loads themselves go on. Make it no less than
    /// [`PoolOptions::timeout`](crate::PoolOptions::timeout) and the getter's own deadline together: a
    /// load may take both.
    pub fn load_timeout(self, load_timeout: Duration) -> Self {
        Self { load_timeout, ..self }
    }

    /// Whether this process tries to load a key whose owner answered that its own load has failed, or which
    /// answered others meanwhile, but not this key in time: most likely it still waits for the origin. Default: `true`, which helps if the owner's way to the origin has failed.
    ///
    /// With `false` the get ends with [`Error::Owner`]. Turn it off if all processes ask the same
    /// origin and its failures last: with an origin that hangs and a getter that gives up after 2 s,
    /// each get takes 4 s otherwise, and the origin is asked twice. An owner that is down, mute or
    /// overloaded is replaced in both cases, and so is a node of Go's GeeCache, whose errors do not
    /// say that the load failed.
    pub fn retry_failed_loads(self, retry_failed_loads: bool) -> Self {
        Self { retry_failed_loads, ..self }
    }

    /// Renews values before they expire: a get that finds a value with no more than this time left to
    /// live is answered at once, and the value is loaded anew in the background, once however many ask.
    /// Default: zero, values are not renewed.
    ///
    /// A fifth of [`ttl`](Self::ttl) is a good start; longer than a load takes, or gets wait for the end of
    /// the renewal. A value whose whole life is no longer than this is renewed once a second. For copies
    /// of other nodes' keys it is half of [`hot_ttl`](Self::hot_ttl) at the most.
    ///
    /// The owner of the key asks its getter, another process that has a copy asks the owner. Until the
    /// new value is there, gets see the old one, no longer than it lives. If the load fails, or the
    /// getter panics, they go on to see it, and one of them causes another try after a second. If the
    /// origin has no such key any more, the value goes. A value that is [removed](Group::remove) while
    /// it is being renewed is not kept. A value that nobody asks for in that time expires.
    ///
    /// Up to four threads do this for a group; they start when they are needed, and end when there is
    /// nothing to do. Each renews one key at a time. Where all threads are busy and 256 keys wait, values
    /// expire as without this.
    pub fn refresh_ahead(self, duration: Duration) -> Self {
        Self { refresh_ahead: duration, ..self }
    }

    /// Keeps values for so much longer than they live, while there is room, to answer gets whose load
    /// fails: the getter's error or panic, or nothing from it for
    /// [`load_timeout`](Self::load_timeout), be it at the owner or in place of an owner that does not
    /// answer. Default: zero, values that expired are gone.
    ///
    /// While the origin fails, the load of a key is tried once a second, by one of its callers; the
    /// others get the old value without waiting. To [`get`](Group::get) it is a value like any other;
    /// [`get_traced`](Group::get_traced) and the log of the process that keeps it say that it is stale,
    /// and why. Other processes keep no copy of it. After "no such key", or a
    /// [removal](Group::remove), no old value comes back. A copy of another process's key is kept for no more than another [`hot_ttl`](Self::hot_ttl), since a
    /// removal, or the news that there is no such key, may not have reached it.
    pub fn stale_if_error(self, duration: Duration) -> Self {
        Self { stale_if_error: duration, ..self }
    }

    /// The list of peers, which knows the owners of keys, such as an [`HttpPool`](crate::HttpPool). Default: nothing,
    /// this process owns all keys.
    #[doc(alias = "RegisterPeers")]
    pub fn peers(self, peers: Arc<impl PeerPicker + 'static>) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// The clock by which entries expire, are renewed, and are tried again after a failure. Deadlines,
    /// such as [`load_timeout`](Self::load_timeout) and those of peers, are real time. Default:
    /// [`Clock::real`].
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Makes the group.
    ///
    /// # Errors
    /// [`Error::Config`] if the name is empty or longer than [`MAX_GROUP_BYTES`], `hot_bytes` is more
    /// than `max_bytes`, or `ttl_jitter` is not between 0 and 1.
    pub fn build(self) -> Result<Arc<Group>, Error> {
        let wrong = |what| Err(Error::Config(format!("group {:.100}: {what}", self.name)));
        if !(1..=MAX_GROUP_BYTES).contains(&self.name.len()) {
            return wrong(format!("a name has 1 to {MAX_GROUP_BYTES} bytes"));
        }
        if !(0.0..=1.0).contains(&self.ttl_jitter) {
            return wrong(format!("ttl_jitter ({}) is a fraction from 0 to 1", self.ttl_jitter));
        }
        let default_hot = if self.peers.is_some() { self.max_bytes / 8 } else { 0 };
        let hot_bytes = self.hot_bytes.unwrap_or(default_hot);
        let Some(main_bytes) = self.max_bytes.checked_sub(hot_bytes) else {
            let max_bytes = self.max_bytes;
            return wrong(format!("hot_bytes ({hot_bytes}) is a part of max_bytes ({max_bytes})"));
        };
        let ahead = self.refresh_ahead;
        let cache = |bytes, ahead| Cache::new(bytes, self.eviction, ahead, self.clock.clone());
        let (main, hot) = (cache(main_bytes, ahead), cache(hot_bytes, ahead.min(self.hot_ttl / 2)));
        let peers = self.peers.clone();
        let group = Arc::new_cyclic(|own: &Weak<Group>| Group {
            settings: self,
            peers: peers.unwrap_or_else(|| Arc::new(NoPeers)),
            hasher: Hasher::default(),
            main,
            hot,
            disowned: Disowned::new(),
            made: Removals::default(),
            told: Removals::default(),
            asking: Flight::new(),
            loading: Flight::new(),
            attempts: Attempts::default(),
            counters: Counters::default(),
            warnings: Warnings::default(),
            renewals: Elastic::new("geecache-renewal", MOST_THREADS, MOST_JOBS),
            threads: Elastic::new("geecache-group", MOST_THREADS, MOST_JOBS),
            own: own.clone(),
            _on_change: on_change(own.clone()),
        });
        group.peers.on_change(Arc::downgrade(&group._on_change));
        Ok(group)
    }
}

/// Called when the list of nodes has changed.
fn on_change(group: Weak<Group>) -> Arc<dyn Fn() + Send + Sync> {
    Arc::new(move || {
        if let Some(group) = group.upgrade() {
            group.disown();
            group.repeat_removals();
            group.forget_peers();
        }
    })
}
