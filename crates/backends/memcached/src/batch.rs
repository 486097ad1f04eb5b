//! Many keys at once: to all servers at the same time, to each in large requests.

use commonhold_core::{
    Action, Applied, Condition, Entry, Error, ErrorKind, Expiry, Key, Result, Retry, Write,
};
use futures_util::future::join_all;

use crate::{
    backend::{MemcachedBackend, applied, entry},
    keys::WireKey,
    server::Server,
    wire::{Commands, MAX_COMMANDS, Set, When},
};

/// A request is sent once it is this long.
const REQUEST_BYTES: usize = 1024 * 1024;

impl MemcachedBackend {
    pub(crate) async fn read_many(&self, keys: &[Key]) -> Result<Vec<Option<Entry>>> {
        let mut entries = vec![None; keys.len()];
        let reads = self.ring.by_server(keys.iter()).into_iter().map(|(server, places)| async move {
            let mut read = Vec::with_capacity(places.len());
            for chunk in places.chunks(MAX_COMMANDS) {
                let mut commands = server.commands();
                chunk.iter().for_each(|(_, wire)| commands.get(wire, "v t"));
                for (reply, (index, _)) in server.ask(commands).await?.replies.into_iter().zip(chunk) {
                    read.push((*index, entry(reply)?));
                }
            }
            Ok::<_, Error>(read)
        });
        for read in join_all(reads).await {
            for (index, entry) in read? {
                if let Some(place) = entries.get_mut(index) {
                    *place = entry;
                }
            }
        }
        Ok(entries)
    }

    /// Writes each by itself, those to one key in their order.
    pub(crate) async fn write_all(&self, batch: Vec<Write>) -> Result<Vec<Applied>> {
        for write in &batch {
            self.check_write(write).map_err(|error| error.with_key(write.key()))?;
        }
        let mut answers = vec![Applied::No; batch.len()];
        let by_server = self.ring.by_server(batch.iter().map(Write::key));
        let is_one_request = by_server.len() == 1 && batch.len() <= MAX_COMMANDS;
        let batch = &batch;
        let writes = by_server.into_iter().map(|(server, places)| self.write_to(server, places, batch));
        for written in join_all(writes).await {
            // Others of the batch may have been written.
            let written = written.map_err(|error| match error.retry() {
                Retry::Safe if !is_one_request => error.with_retry(Retry::Ambiguous),
                _ => error,
            })?;
            for (index, applied) in written {
                if let Some(place) = answers.get_mut(index) {
                    *place = applied;
                }
            }
        }
        Ok(answers)
    }

    fn check_write(&self, write: &Write) -> Result<()> {
        if *write.condition() != Condition::Always {
            let message = "Memcached cannot carry out a batch as a whole, so its writes have no conditions";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        match write {
            Write::Put { value, options, .. } => self.check_put(value, options.expiry),
            Write::Delete { .. } => Ok(()),
        }
    }

    async fn write_to(
        &self,
        server: &Server,
        places: Vec<(usize, WireKey)>,
        batch: &[Write],
    ) -> Result<Vec<(usize, Applied)>> {
        let mut done = Vec::with_capacity(places.len());
        let (mut commands, mut asked) = (server.commands(), Vec::new());
        for (index, wire) in places {
            let Some(write) = batch.get(index) else { continue };
            match write {
                Write::Put { key, value, options } if options.expiry == Expiry::Keep => {
                    // It needs what those before it leave.
                    send(server, &mut commands, &mut asked, &mut done).await?;
                    let put = Action::Put { value: value.clone(), expiry: Expiry::Keep };
                    done.push((index, self.apply_if(key, &Condition::Always, put).await?));
                    continue;
                }
                Write::Put { value, options, .. } => {
                    let expires = server.expires(self.put_expiry(options.expiry)).await?;
                    commands.set(&wire, value, Set { when: When::Always, expires, client_flags: 0 });
                }
                Write::Delete { .. } => commands.delete(&wire, None),
            }
            asked.push(index);
            if asked.len() >= MAX_COMMANDS || commands.bytes.len() >= REQUEST_BYTES {
                send(server, &mut commands, &mut asked, &mut done).await?;
            }
        }
        send(server, &mut commands, &mut asked, &mut done).await?;
        Ok(done)
    }
}

async fn send(
    server: &Server,
    commands: &mut Commands,
    asked: &mut Vec<usize>,
    done: &mut Vec<(usize, Applied)>,
) -> Result<()> {
    if asked.is_empty() {
        return Ok(());
    }
    let commands = std::mem::replace(commands, server.commands());
    let replies = server.ask(commands).await?.replies;
    for (index, reply) in asked.drain(..).zip(replies) {
        done.push((index, applied(reply)?));
    }
    Ok(())
}
