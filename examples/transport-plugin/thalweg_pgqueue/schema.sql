-- The broker: tables, and functions that any program may call. Each is one transaction.
--     SELECT put('orders', ARRAY['key']::bytea[], ARRAY['value']::bytea[], ARRAY[NULL]::bytea[], ARRAY[0]);

DO $do$
BEGIN

PERFORM pg_advisory_xact_lock(7468616);  -- PostgreSQL cannot create one thing twice at once
EXECUTE format('CREATE SCHEMA IF NOT EXISTS %s', current_setting('search_path'));

CREATE TABLE IF NOT EXISTS topics (name bytea PRIMARY KEY, partitions int NOT NULL, queue bool NOT NULL);

-- Whoever adds to a topic locks it first, so that ids grow in the order of commits. headers: msgpack (NULL: none).
-- at: milliseconds since the epoch.
CREATE TABLE IF NOT EXISTS messages (
    id bigserial PRIMARY KEY, topic bytea REFERENCES topics, key bytea, value bytea, headers bytea, at bigint
);

CREATE TABLE IF NOT EXISTS groups (
    id serial PRIMARY KEY, topic bytea REFERENCES topics, name bytea, UNIQUE (topic, name)
);

-- A member is alive until `until`, and moves that on by `lease` time and again.
CREATE TABLE IF NOT EXISTS members (
    id serial PRIMARY KEY, grp int REFERENCES groups, lease interval, until timestamptz
);

-- What a group has not done yet. It is on loan to `owner` while that one is alive.
CREATE TABLE IF NOT EXISTS waiting (
    grp int REFERENCES groups, id bigint REFERENCES messages, key bytea, attempts int NOT NULL DEFAULT 0,
    owner int NOT NULL DEFAULT 0, PRIMARY KEY (grp, id)
);
CREATE INDEX IF NOT EXISTS waiting_by_id ON waiting (id);

-- Settings by which a crash of the server takes back what it had acknowledged.
CREATE OR REPLACE FUNCTION weak() RETURNS SETOF text LANGUAGE sql AS $$
    SELECT name || ' = off: a crash of the server takes back what it had acknowledged; set it to on'
    FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit') AND setting = 'off';
$$;

-- topic, partitions, whether it is a queue, whether it may be created. Returns it as it is.
CREATE OR REPLACE FUNCTION declare(bytea, int, bool, bool) RETURNS TABLE (partitions int, queue bool)
LANGUAGE sql SET search_path FROM CURRENT AS $$
    INSERT INTO topics SELECT $1, $2, $3 WHERE $4 ON CONFLICT DO NOTHING;
    SELECT partitions, queue FROM topics WHERE name = $1;
$$;

-- topic, keys, values, headers, times (0: now)
CREATE OR REPLACE FUNCTION put(bytea, bytea[], bytea[], bytea[], bigint[]) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT FROM topics WHERE name = $1 FOR UPDATE;
    WITH new AS (
        INSERT INTO messages (topic, key, value, headers, at)
        SELECT $1, k, v, h, COALESCE(NULLIF(t, 0), extract(epoch FROM clock_timestamp()) * 1000)
        FROM unnest($2, $3, $4, $5) AS given (k, v, h, t)
        RETURNING id, key
    )
    INSERT INTO waiting (grp, id, key) SELECT groups.id, new.id, key FROM new, groups WHERE topic = $1;
$$;

-- topic, name of a group, which begins with all that is kept; seconds of a lease. Returns a new member of the group.
CREATE OR REPLACE FUNCTION enter(bytea, bytea, float) RETURNS SETOF int
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT FROM topics WHERE name = $1 FOR UPDATE;
    WITH new AS (
        INSERT INTO groups (topic, name) SELECT name, $2 FROM topics WHERE name = $1 ON CONFLICT DO NOTHING RETURNING id
    )
    INSERT INTO waiting (grp, id, key) SELECT new.id, messages.id, key FROM new, messages WHERE topic = $1;
    INSERT INTO members (grp, lease, until) SELECT id, $3 * interval '1s', now() + $3 * interval '1s'
    FROM groups WHERE topic = $1 AND name = $2 RETURNING id;
$$;

-- member, limit, ids that it has in hand: what else it owns came in an answer that was lost, and comes again.
-- A topic's members take turns, and a key stays with a member that has messages of it; those of a queue do not wait.
CREATE OR REPLACE FUNCTION take(int, int, bigint[])
RETURNS TABLE (id bigint, attempts int, value bytea, key bytea, headers bytea, at bigint)
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT pg_advisory_xact_lock('groups'::regclass::oid::int, groups.id)
    FROM members JOIN groups ON grp = groups.id JOIN topics ON topic = topics.name WHERE members.id = $1 AND NOT queue;
    -- It is alive, though it may have stood still: else what it takes would be free to others at once.
    UPDATE members SET until = clock_timestamp() + lease WHERE id = $1 AND until < clock_timestamp() + lease / 2;
    WITH mine AS (
        SELECT grp, queue FROM members JOIN groups ON grp = groups.id JOIN topics ON topic = topics.name WHERE members.id = $1
    ), others AS (
        SELECT id FROM members JOIN mine USING (grp) WHERE id <> $1 AND until > now()
    ), lent AS (
        SELECT key FROM waiting JOIN mine USING (grp) WHERE NOT queue AND owner IN (TABLE others)
    ), free AS (
        SELECT id FROM waiting WHERE grp = (SELECT grp FROM mine) AND id <> ALL ($3) AND owner NOT IN (TABLE others)
        AND NOT EXISTS (SELECT FROM lent WHERE lent.key = waiting.key)
        ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE waiting SET owner = $1, attempts = attempts + 1 WHERE grp = (SELECT grp FROM mine) AND id IN (TABLE free)
        RETURNING id, attempts
    )
    SELECT id, attempts, value, key, COALESCE(headers, '\x90'), at FROM taken JOIN messages USING (id) ORDER BY id;
$$;

-- member, ids, attempts. Returns how many of them had gone to other members; they stay theirs.
CREATE OR REPLACE FUNCTION done(int, bigint[], int[]) RETURNS bigint
LANGUAGE sql SET search_path FROM CURRENT AS $$
    DELETE FROM waiting USING members WHERE members.id = $1 AND waiting.grp = members.grp
    AND (waiting.id, attempts) IN (SELECT * FROM unnest($2, $3));
    DELETE FROM messages USING topics WHERE id = ANY ($2) AND topic = name AND queue
    AND NOT EXISTS (SELECT FROM waiting WHERE waiting.id = messages.id);
    SELECT count(*) FROM waiting JOIN members USING (grp) WHERE members.id = $1 AND waiting.id = ANY ($2);
$$;

-- members
CREATE OR REPLACE FUNCTION renew(int[]) RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    UPDATE members SET until = now() + lease WHERE id = ANY ($1);
$$;

-- member: what it has not done is free from now on. Its row stays, for a `done` that is still under way.
CREATE OR REPLACE FUNCTION leave(int) RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    UPDATE members SET until = '-infinity', lease = '0' WHERE id = $1;
$$;

END $do$
