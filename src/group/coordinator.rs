//! The coordinator of one partition of `__consumer_offsets`: events in, effects out.

use crate::request::group::{
    CommitOffsets, DescribedGroup, FetchOffsets, FetchedTopic, GroupAnswer, GroupError, Heartbeat, JoinGroup, LeaveGroup, Left,
    ListedGroup, MemberMetadata, State, SyncGroup,
};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::classic::ClassicGroup;
use super::error::AppendFailure;
use super::message::{Effect, Token, Waiter};
use super::offsets;
use super::outbox::{Deletion, Held, InFlight, Outbox, Purpose};
use super::records::{Change, RecordError};
use super::settings::{Now, Settings};
use super::snapshot::{self, SnapshotError};
use super::timers::Timer;
use crate::limits;
use crate::types::Offset;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Loading,
    Active,
    Unloaded,
}

/// All groups of one partition of `__consumer_offsets`. See the module's page.
#[derive(Debug)]
pub struct Coordinator {
    phase: Phase,
    groups: BTreeMap<Arc<str>, ClassicGroup>,
    /// Positions of all groups.
    positions: usize,
    /// One past the last record that is in force.
    log_end: Offset,
    /// The group after which the search for old positions goes on.
    expired_to: Option<Arc<str>>,
    out: Outbox,
}

/// # Loading
/// `new`, perhaps a snapshot, every record after it, then [`Coordinator::handle_loaded`]. Until then requests are refused with
/// [`GroupError::CoordinatorLoadInProgress`].
impl Coordinator {
    /// One that is loading.
    ///
    /// # Panics
    /// When a setting is past what records can hold.
    pub fn new(settings: Settings) -> Coordinator {
        assert!(settings.max_offset_metadata <= limits::MAX_OFFSET_METADATA, "metadata of that length does not fit a record");
        Coordinator {
            phase: Phase::Loading,
            groups: BTreeMap::new(),
            positions: 0,
            log_end: 0,
            expired_to: None,
            out: Outbox::new(settings),
        }
    }

    /// Takes a snapshot; gives the offset of the first record that it does not hold.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are no snapshot. The coordinator is to be thrown away then, and the log read from its beginning.
    ///
    /// # Panics
    /// When anything was loaded before.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<Offset, SnapshotError> {
        assert!(self.phase == Phase::Loading && self.groups.is_empty() && self.log_end == 0, "a snapshot comes first");
        let snapshot = snapshot::decode(bytes)?;
        snapshot.changes.into_iter().for_each(|change| self.replay(change));
        self.log_end = snapshot.log_end;
        Ok(self.log_end)
    }

    /// Takes the next record of the log. One of a kind that is not served here changes nothing.
    ///
    /// # Errors
    /// [`RecordError`] for a record that does not read: the partition holds what is no group's.
    ///
    /// # Panics
    /// When the coordinator is not loading, or the record is older than what it has.
    pub fn handle_record(&mut self, offset: Offset, key: &[u8], value: Option<&[u8]>) -> Result<(), RecordError> {
        assert!(self.phase == Phase::Loading && offset >= self.log_end, "records are read once, in order, before the first request");
        if let Some(change) = Change::decode(key, value)? {
            self.replay(change);
        }
        self.log_end = offset + 1;
        Ok(())
    }

    fn replay(&mut self, change: Change) {
        let id = change.group().clone();
        self.groups.entry(id.clone()).or_insert_with(|| ClassicGroup::new(id.clone(), 0));
        self.with_group(&id, |group, _| group.apply(&change));
    }

    /// Everything is loaded: requests are served from here on. Members of the groups have a session's time to show themselves.
    pub fn handle_loaded(&mut self, now: Now) {
        assert_eq!(self.phase, Phase::Loading, "loaded once");
        self.phase = Phase::Active;
        self.out.timers.set(Timer::Retention, now.steady_ms.saturating_add(self.out.settings.retention_check_ms));
        let ids: Vec<Arc<str>> = self.groups.keys().cloned().collect();
        for id in ids {
            self.with_group(&id, |group, out| {
                group.activate();
                for member in group.members().keys() {
                    group.renew_session(member, out, now);
                }
                if group.members().len() > out.settings.max_members {
                    // The bound was lowered: whoever joins last loses its place.
                    group.prepare_rebalance(out, now);
                }
            });
        }
    }

    /// The partition is led elsewhere, or its log is in doubt: everybody who waits is told to look for the coordinator again. Nothing is served any more.
    pub fn handle_unload(&mut self) {
        self.phase = Phase::Unloaded;
        self.out.effects.retain(|effect| matches!(effect, Effect::Answer { .. }));
        for append in std::mem::take(&mut self.out.in_flight) {
            self.out.release(append.held, Err(AppendFailure::NotLeader));
        }
        for group in self.groups.values_mut() {
            let ids: Vec<Arc<str>> = group.members().keys().cloned().collect();
            for id in ids {
                if let Some(waiter) = group.take_join(&id) {
                    self.out.refuse_join(waiter, GroupError::NotCoordinator, id.clone());
                }
                if let Some(waiter) = group.take_sync(&id) {
                    self.out.refuse_sync(waiter, GroupError::NotCoordinator);
                }
            }
        }
        self.groups.clear();
        self.positions = 0;
        self.out.timers.clear();
    }
}

/// # Driving
impl Coordinator {
    /// What the shell is to do next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.out.effects.pop_front()
    }

    /// When [`Coordinator::handle_time`] is to be called at the latest, ms of the steady clock.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.out.timers.next()
    }

    /// Time has passed.
    pub fn handle_time(&mut self, now: Now) {
        while let Some(timer) = self.out.timers.pop_due(now.steady_ms) {
            match timer {
                Timer::Session(group, member) => self.with_group(&group, |group, out| group.handle_session_timer(&member, out, now)),
                Timer::Join(group) => self.with_group(&group, |group, out| group.handle_join_timer(out, now)),
                Timer::Sync(group) => self.with_group(&group, |group, out| group.handle_sync_timer(out, now)),
                Timer::Retention => {
                    self.expire_some(now);
                    None
                }
            };
        }
    }

    /// An append is durable, with the log's end after it, or has failed and is not in the log. Reports come in the order of the appends.
    ///
    /// # Panics
    /// When the report is not that of the oldest append, or the log went back.
    pub fn handle_appended(&mut self, token: Token, outcome: Result<Offset, AppendFailure>, now: Now) {
        if self.phase == Phase::Unloaded {
            return;
        }
        let InFlight { token: oldest, changes, purpose, held } = self.out.in_flight.pop_front().expect("an append that was asked for");
        assert_eq!(token, oldest, "appends end in their order");
        if let Ok(end) = outcome {
            assert!(end > self.log_end, "the log went from {} to {end}", self.log_end);
            self.log_end = end;
        }
        for change in &changes {
            self.with_group(change.group(), |group, _| group.settle(change, outcome.is_ok()));
        }
        self.handle_purpose(purpose, token, outcome.map(|_| ()), now);
        self.out.release(held, outcome.map(|_| ()));
    }

    fn handle_purpose(&mut self, purpose: Purpose, token: Token, outcome: Result<(), AppendFailure>, now: Now) {
        let outcome = outcome.map_err(AppendFailure::of_group);
        match purpose {
            Purpose::Changes => {}
            Purpose::Assignment { group } => {
                self.with_group(&group, |group, out| match outcome {
                    Ok(()) => group.handle_assignment_stored(token, out, now),
                    Err(error) => group.handle_assignment_lost(token, error, out, now),
                });
            }
            Purpose::Replacement(replacement) => {
                let group = replacement.group.clone();
                self.with_group(&group, |group, out| match outcome {
                    Ok(()) => group.handle_replacement_stored(&replacement, out, now),
                    Err(error) => group.handle_replacement_lost(*replacement, error, out, now),
                });
            }
            Purpose::Removal { group } => {
                // Still there after its tombstone: an earlier tombstone of a position failed. It is what a start would make of the log, a simple group.
                self.with_group(&group, |group, _| group.revive(now));
            }
        }
    }

    /// A topic is gone: so are the positions in it. If the log does not take that, they stay until they expire.
    pub fn handle_topic_deleted(&mut self, topic: &str) {
        let topic: Arc<str> = topic.into();
        for id in self.ids_after(None, usize::MAX) {
            self.with_group(&id, |group, out| {
                if group.state() != State::Dead {
                    group.purge_topic(&topic, out)
                }
            });
        }
    }

    /// One step of the search for old positions; the next one is due at once, or after the interval.
    fn expire_some(&mut self, now: Now) {
        let ids = self.ids_after(self.expired_to.as_ref(), limits::GROUP_EXPIRY_STEP);
        for id in &ids {
            self.with_group(id, |group, out| group.expire(out, now));
        }
        let is_last = ids.len() < limits::GROUP_EXPIRY_STEP;
        self.expired_to = ids.into_iter().next_back().filter(|_| !is_last);
        // At least one: a timer that is due at once would be due for ever.
        let pause = if is_last { self.out.settings.retention_check_ms.max(1) } else { 1 };
        self.out.timers.set(Timer::Retention, now.steady_ms.saturating_add(pause));
    }

    fn ids_after(&self, after: Option<&Arc<str>>, most: usize) -> Vec<Arc<str>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, |id| Excluded(id.clone()));
        self.groups.range((from, Unbounded)).map(|(id, _)| id.clone()).take(most).collect()
    }

    /// Lets something happen to a group, and forgets the group if nothing is left of it.
    fn with_group<R>(&mut self, id: &str, act: impl FnOnce(&mut ClassicGroup, &mut Outbox) -> R) -> Option<R> {
        let group = self.groups.get_mut(id)?;
        let before = group.positions.len();
        let result = act(group, &mut self.out);
        self.positions = self.positions - before + group.positions.len();
        if group.is_nothing() {
            group.cancel_timers(&mut self.out);
            self.groups.remove(id);
        }
        Some(result)
    }

    /// Why requests can't be served now.
    fn check_phase(&self) -> Result<(), GroupError> {
        match self.phase {
            Phase::Loading => Err(GroupError::CoordinatorLoadInProgress),
            Phase::Active => Ok(()),
            Phase::Unloaded => Err(GroupError::NotCoordinator),
        }
    }
}

/// # Requests
/// Each with a waiter is answered by exactly one [`Effect::Answer`], sooner or later; the others at once.
impl Coordinator {
    /// JoinGroup. The answer may wait for the other members as long as the longest of their rebalance timeouts.
    pub fn handle_join(&mut self, waiter: Waiter, join: JoinGroup, now: Now) {
        if let Err(error) = self.check_phase().and_then(|()| join.check(&self.out.settings)).and_then(|()| self.make_place(&join, now)) {
            self.out.refuse_join(waiter, error, join.member_id.as_str());
            return;
        }
        self.with_group(&join.group, |group, out| group.join(waiter, &join, out, now));
    }

    /// A group for a join: a new one for a new member.
    fn make_place(&mut self, join: &JoinGroup, now: Now) -> Result<(), GroupError> {
        if self.groups.contains_key(join.group.as_str()) {
            return Ok(());
        }
        if !join.member_id.is_empty() {
            return Err(GroupError::UnknownMemberId);
        }
        self.create(&join.group, now)
    }

    fn create(&mut self, id: &str, now: Now) -> Result<(), GroupError> {
        if id.len() > limits::MAX_GROUP_ID {
            return Err(GroupError::InvalidGroupId);
        }
        if self.groups.len() >= self.out.settings.max_groups {
            return Err(GroupError::PolicyViolation);
        }
        let id: Arc<str> = id.into();
        self.groups.insert(id.clone(), ClassicGroup::new(id, now.wall));
        Ok(())
    }

    /// SyncGroup. The answer waits for the leader's assignment and until that is durable.
    pub fn handle_sync(&mut self, waiter: Waiter, sync: SyncGroup, now: Now) {
        if let Err(error) = self.check_phase().and_then(|()| check_id(&sync.group)) {
            self.out.refuse_sync(waiter, error);
            return;
        }
        if self.with_group(&sync.group, |group, out| group.sync(waiter, &sync, out, now)).is_none() {
            self.out.refuse_sync(waiter, GroupError::UnknownMemberId);
        }
    }

    /// Where the broker assigns for a leader that syncs now: the chosen protocol and all members. `None` where nobody waits for an assignment of this member.
    pub fn to_assign(&self, sync: &SyncGroup) -> Option<(Arc<str>, Vec<MemberMetadata>)> {
        let group = self.groups.get(sync.group.as_str())?;
        let is_awaited = group.state() == State::CompletingRebalance
            && group.storing.is_none()
            && group.generation == sync.generation
            && group.is_leader(&sync.member.member_id);
        is_awaited.then(|| Some((group.protocol.clone()?, group.member_metadata())))?
    }

    /// Heartbeat. While loading it is blindly well, as in Kafka: clients take that error for a fatal one.
    ///
    /// # Errors
    /// [`GroupError::RebalanceInProgress`] when the member has to join again; else who is no member of this generation.
    pub fn handle_heartbeat(&mut self, heartbeat: &Heartbeat, now: Now) -> Result<(), GroupError> {
        check_id(&heartbeat.group)?;
        match self.phase {
            Phase::Loading => Ok(()),
            Phase::Unloaded => Err(GroupError::NotCoordinator),
            Phase::Active => self
                .with_group(&heartbeat.group, |group, out| group.heartbeat(heartbeat, out, now))
                .unwrap_or(Err(GroupError::UnknownMemberId)),
        }
    }

    /// LeaveGroup. The answer waits for the log if nobody is left.
    pub fn handle_leave(&mut self, waiter: Waiter, leave: &LeaveGroup, now: Now) {
        if let Err(error) = self.check_phase().and_then(|()| check_id(&leave.group)) {
            self.out.answer(waiter, GroupAnswer::Leave(Err(error)));
            return;
        }
        if self.with_group(&leave.group, |group, out| group.leave(waiter, leave, out, now)).is_none() {
            let unknown =
                |member: &crate::request::group::MemberRef| Left { member: member.clone(), outcome: Err(GroupError::UnknownMemberId) };
            self.out.answer(waiter, GroupAnswer::Leave(Ok(leave.members.iter().map(unknown).collect())));
        }
    }

    /// OffsetCommit. The answer waits until the positions are durable.
    pub fn handle_commit(&mut self, waiter: Waiter, commit: &CommitOffsets, now: Now) {
        if let Err(error) = self.check_phase().and_then(|()| self.check_commit(commit, now)) {
            self.refuse_commit(waiter, commit, error);
            return;
        }
        let room = self.out.settings.max_offsets.saturating_sub(self.positions);
        self.with_group(&commit.group, |group, out| match group.commit(commit, room, out, now) {
            (outcomes, Some(token)) => out.hold(token, waiter, Held::Whole(GroupAnswer::Commit(outcomes))),
            (outcomes, None) => out.answer(waiter, GroupAnswer::Commit(outcomes)),
        });
    }

    fn check_commit(&mut self, commit: &CommitOffsets, now: Now) -> Result<(), GroupError> {
        match self.groups.get(commit.group.as_str()) {
            Some(group) => group.check_commit(commit),
            // A simple consumer's group begins with its first commit.
            None if commit.generation < 0 => self.create(&commit.group, now),
            None => Err(GroupError::IllegalGeneration),
        }
    }

    fn refuse_commit(&mut self, waiter: Waiter, commit: &CommitOffsets, error: GroupError) {
        self.out.answer(waiter, GroupAnswer::Commit(offsets::refused(commit, error)));
    }

    /// OffsetFetch: durable positions. Of a group that is not there none are known.
    ///
    /// # Errors
    /// When this coordinator does not serve now.
    pub fn fetch_offsets(&self, fetch: &FetchOffsets) -> Result<Vec<FetchedTopic>, GroupError> {
        self.check_phase()?;
        match self.groups.get(fetch.group.as_str()) {
            Some(group) => Ok(group.fetch(fetch)),
            None => Ok(ClassicGroup::new(fetch.group.as_str().into(), 0).fetch(fetch)),
        }
    }

    /// DescribeGroups: one group. A group that is not there is [`State::Dead`] without members.
    ///
    /// # Errors
    /// When this coordinator does not serve now.
    pub fn describe(&self, group: &str) -> Result<DescribedGroup, GroupError> {
        self.check_phase()?;
        let dead = || DescribedGroup {
            group: group.into(),
            state: State::Dead,
            protocol_type: "".into(),
            protocol: "".into(),
            members: Vec::new(),
        };
        Ok(self.groups.get(group).map_or_else(dead, ClassicGroup::describe))
    }

    /// ListGroups: those in one of these states; without states all.
    ///
    /// # Errors
    /// While this coordinator is loading. One that was unloaded has no groups.
    pub fn list(&self, states: &[State]) -> Result<Vec<ListedGroup>, GroupError> {
        if self.phase == Phase::Loading {
            return Err(GroupError::CoordinatorLoadInProgress);
        }
        let listed = |group: &ClassicGroup| ListedGroup {
            group: group.id.clone(),
            protocol_type: group.protocol_type.clone().unwrap_or_default(),
            state: group.state(),
        };
        Ok(self.groups.values().filter(|group| states.is_empty() || states.contains(&group.state())).map(listed).collect())
    }

    /// DeleteGroups: empty ones, with their positions. The answer waits until all of it is durable.
    pub fn handle_delete_groups(&mut self, waiter: Waiter, groups: Vec<String>, now: Now) {
        let mut deletion = Deletion { outcomes: groups.into_iter().map(|id| (id, None)).collect() };
        let mut tokens = Vec::new();
        for (id, outcome) in &mut deletion.outcomes {
            match self.check_phase().and_then(|()| self.delete_group(id, now)) {
                Ok(token) => tokens.push((token, Arc::from(id.as_str()))),
                Err(error) => *outcome = Some(Err(error)),
            }
        }
        if tokens.is_empty() {
            let outcomes = deletion.outcomes.into_iter().filter_map(|(id, outcome)| Some((id, outcome?))).collect();
            self.out.answer(waiter, GroupAnswer::DeleteGroups(outcomes));
            return;
        }
        self.out.deletions.insert(waiter, deletion);
        for (token, id) in tokens {
            self.out.hold(token, waiter, Held::Deletion(id));
        }
    }

    fn delete_group(&mut self, id: &str, now: Now) -> Result<Token, GroupError> {
        let delete = |group: &mut ClassicGroup, out: &mut Outbox| {
            group.check_delete()?;
            Ok(group.delete(out, now))
        };
        self.with_group(id, delete).unwrap_or(Err(GroupError::GroupIdNotFound))
    }

    /// OffsetDelete: positions in topics that the group's members do not read. The answer waits until it is durable.
    pub fn handle_delete_offsets(&mut self, waiter: Waiter, group: &str, topics: &[(String, Vec<i32>)]) {
        let delete = |group: &mut ClassicGroup, out: &mut Outbox| {
            group.check_delete_offsets()?;
            Ok(group.delete_offsets(topics, out))
        };
        let outcome = self.check_phase().and_then(|()| self.with_group(group, delete).unwrap_or(Err(GroupError::GroupIdNotFound)));
        match outcome {
            Ok((outcomes, Some(token))) => self.out.hold(token, waiter, Held::Whole(GroupAnswer::DeleteOffsets(Ok(outcomes)))),
            Ok((outcomes, None)) => self.out.answer(waiter, GroupAnswer::DeleteOffsets(Ok(outcomes))),
            Err(error) => self.out.answer(waiter, GroupAnswer::DeleteOffsets(Err(error))),
        }
    }
}

/// # Checkpoints
impl Coordinator {
    /// Everything that the log says up to [`Coordinator::log_end`]: with the records from there on it is the same state. What is on its way is not in it.
    pub fn snapshot(&self) -> Vec<u8> {
        let groups = self.groups.values().filter_map(|group| {
            let metadata = Some(group.stored.clone()?);
            Some(Change::Group { group: group.id.clone(), metadata })
        });
        let positions = self.groups.values().flat_map(|group| {
            group.positions.iter().filter_map(|(topic, partition, position)| {
                let commit = Some(position.durable.clone()?);
                Some(Change::Offset { group: group.id.clone(), topic: topic.clone(), partition, commit })
            })
        });
        snapshot::encode(self.log_end, groups.chain(positions))
    }

    /// One past the last record that is in force here.
    pub fn log_end(&self) -> Offset {
        self.log_end
    }

    /// Topics in which groups have positions: after loading, the shell deletes those that are no more ([`Coordinator::handle_topic_deleted`]).
    pub fn topics(&self) -> std::collections::BTreeSet<Arc<str>> {
        self.groups.values().flat_map(|group| group.positions.topics().map(|(topic, _)| topic.clone())).collect()
    }

    /// Number of groups.
    pub fn group_count(&self) -> usize {
        self.groups.len()
    }

    /// Number of positions, those on their way included.
    pub fn position_count(&self) -> usize {
        self.positions
    }

    /// Appends that were not reported yet.
    pub fn appends_in_flight(&self) -> usize {
        self.out.in_flight.len()
    }
}

/// A group with members has a name. (Positions alone may be of the empty one, which clients of old use.)
fn check_id(group: &str) -> Result<(), GroupError> {
    if group.is_empty() { Err(GroupError::InvalidGroupId) } else { Ok(()) }
}

#[cfg(test)]
impl Coordinator {
    pub(super) fn group(&self, id: &str) -> Option<&ClassicGroup> {
        self.groups.get(id)
    }

    /// That counts, timers and waiters are those of the groups.
    pub(super) fn check(&self) {
        let mut positions = 0;
        for group in self.groups.values() {
            group.check();
            positions += group.positions.len();
            assert!(!group.is_nothing(), "group {} was to be forgotten", group.id);
            // Whatever a group waits for ends by a timer or by the log.
            let has = |timer: Timer| self.out.timers.has(&timer);
            for (id, member) in group.members() {
                let ends = member.is_excused() || has(Timer::Session(group.id.clone(), id.clone()));
                assert!(ends || self.phase == Phase::Loading, "{id} would live for ever");
            }
            match group.state() {
                State::PreparingRebalance => assert!(has(Timer::Join(group.id.clone())), "{} would gather for ever", group.id),
                State::CompletingRebalance => {
                    let ends = group.storing.is_some() || has(Timer::Sync(group.id.clone()));
                    assert!(ends, "{} would wait for an assignment for ever", group.id);
                }
                State::Stable => {
                    let ends = group.pending_syncs.is_empty() || has(Timer::Sync(group.id.clone()));
                    assert!(ends, "{} would wait for a sync for ever", group.id);
                }
                State::Empty | State::Dead => {}
            }
        }
        assert_eq!(positions, self.positions);
        for timer in self.out.timers.keys() {
            let is_of_somebody = match timer {
                Timer::Session(group, member) => {
                    self.groups.get(group).is_some_and(|g| g.has_member(member) || g.pending_joins.contains(member))
                }
                Timer::Join(group) => self.groups.get(group).is_some_and(|g| g.state() == State::PreparingRebalance),
                Timer::Sync(group) => self.groups.get(group).is_some_and(|g| !g.pending_syncs.is_empty()),
                Timer::Retention => true,
            };
            assert!(is_of_somebody, "{timer:?} is nobody's");
        }
        let held: usize = self.out.in_flight.iter().map(|append| append.held.len()).sum();
        assert!(self.out.deletions.len() <= held, "a deletion waits for an append");
    }

    pub(super) fn timer_count(&self) -> usize {
        self.out.timers.keys().count()
    }

    /// Of a planted bug.
    pub(super) fn freeze_generations(&mut self) {
        self.out.has_frozen_generations = true;
    }

    /// Of a planted bug: ids that were given out are never taken back.
    pub(super) fn forget_pending_timers(&mut self) {
        let pending = self.groups.values().flat_map(|g| g.pending_joins.iter().map(|id| Timer::Session(g.id.clone(), id.clone())));
        pending.for_each(|timer| self.out.timers.cancel(&timer));
    }

    /// Every request that is not answered.
    pub(super) fn waiters(&self) -> Vec<Waiter> {
        let parked = self.groups.values().flat_map(|g| g.members().values().flat_map(|m| m.join.into_iter().chain(m.sync)));
        let held = self.out.in_flight.iter().flat_map(|append| append.held.iter().map(|(waiter, _)| *waiter));
        let mut waiters: Vec<Waiter> = parked.chain(held).collect();
        waiters.sort_unstable();
        // A deletion of several groups waits for several appends.
        waiters.dedup();
        waiters
    }
}
