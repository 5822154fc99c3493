"""The Lua scripts: what must happen all at once. A script runs alone; it fails before its first write or not at all.

Every script checks types before it writes, as an error amid a script does not undo what it did. `#!lua` makes Redis
refuse a script that may write before it starts, if the memory is full or the server is a replica; `allow-oom` is for
those that only make room.
"""

from __future__ import annotations

import hashlib

__all__ = [
    "APPEND",
    "BOUNDS",
    "CLAIM",
    "CLOSE",
    "COMMIT",
    "DONE",
    "ENTER",
    "EXTEND",
    "HELD",
    "LEAVE",
    "LOCK",
    "MEMBERS",
    "PUT",
    "RENEW",
    "RETRY",
    "SCRIPTS",
    "TAKE",
    "TRIM",
    "UNLOCK",
    "Script",
]


class Script:
    def __init__(self, *parts: str, flags: str = "") -> None:
        self.text = f"#!lua{f' flags={flags}' if flags else ''}\n" + "\n".join(parts)
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()


# --- logs ----------------------------------------------------------------------------------------------------

_APPEND = """
-- A batch in ARGV: how many entries; of each the number of its fields and values, then those. The first entry gets its
-- id from Redis, the rest follow it directly, unless the sequence would leave 20 bits: then in the next millisecond.
local function append(key, at)
    local count = tonumber(ARGV[at])
    at = at + 1
    local first, second, id = '', '', '*'
    for number = 1, count do
        local width = tonumber(ARGV[at])
        local added = redis.call('XADD', key, id, unpack(ARGV, at + 1, at + width))
        at = at + width + 1
        if number == 1 then
            first = added
            local ms, seq = string.match(added, '(%d+)-(%d+)')
            if tonumber(seq) + count >= 1048576 then ms = string.format('%.0f', tonumber(ms) + 1) end
            id = ms .. '-*'
        elseif number == 2 then
            second = added
        end
    end
    return at, first, second
end

local function append_all(from, at)
    local added = {}
    for index = from, #KEYS do redis.call('XLEN', KEYS[index]) end
    for index = from, #KEYS do
        local first, second
        at, first, second = append(KEYS[index], at)
        added[#added + 1] = first
        added[#added + 1] = second
    end
    return added
end
"""

# KEYS: streams. ARGV: a batch for each. Returns the ids of the first two entries of each.
APPEND = Script(_APPEND, "return append_all(1, 1)")

# KEYS: fence, stream. ARGV: token, a batch of one. Returns the marker's id.
CLAIM = Script(
    _APPEND,
    """
local added = append_all(2, 2)
redis.call('SET', KEYS[1], ARGV[1])
return added[1]
""",
)

# KEYS: n fences, then streams. ARGV: n, n tokens, a batch for each stream. Returns as APPEND, or {'FENCED', indexes…}.
COMMIT = Script(
    _APPEND,
    """
local claims = tonumber(ARGV[1])
local lost = {'FENCED'}
for index = 1, claims do
    if redis.call('GET', KEYS[index]) ~= ARGV[index + 1] then lost[#lost + 1] = index - 1 end
end
if #lost > 1 then return lost end
return append_all(claims + 1, claims + 2)
""",
)

_ENDS = """
local function id_of(entries) return entries[1] and entries[1][1] or '' end
local function first_of(key) return id_of(redis.call('XRANGE', key, '-', '+', 'COUNT', 1)) end
local function last_of(key) return id_of(redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)) end
local function numbers(key)  -- last generated id; how many entries were removed, by whomever
    if redis.call('EXISTS', key) == 0 then return '0-0', 0 end
    local info = redis.call('XINFO', 'STREAM', key)
    local found = {}
    for index = 1, #info, 2 do found[info[index]] = info[index + 1] end
    return found['last-generated-id'], found['entries-added'] - found['length']
end
"""

# KEYS: stream, trim mark. Returns first id, last id, last generated id, how many were removed, and the trim mark: the
# last id that a TRIM removed and how many had been removed then.
BOUNDS = Script(
    _ENDS,
    """
local generated, removed = numbers(KEYS[1])
local mark = redis.call('HMGET', KEYS[2], 'last', 'removed')
return {first_of(KEYS[1]), last_of(KEYS[1]), generated, removed, mark[1] or '', tonumber(mark[2] or -1)}
""",
    flags="no-writes",
)

# KEYS: stream, trim mark. ARGV: the id before which all goes.
TRIM = Script(
    _ENDS,
    """
local last = id_of(redis.call('XREVRANGE', KEYS[1], '(' .. ARGV[1], '-', 'COUNT', 1))
if last == '' then return 0 end
local _, before = numbers(KEYS[1])
local removed = redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[1])
redis.call('HSET', KEYS[2], 'last', last, 'removed', before + removed)
return removed
""",
    flags="allow-oom",
)

# --- locks and members ---------------------------------------------------------------------------------------

_RING = """
local function ring(bell) redis.call('XADD', bell, 'MAXLEN', 1, '*', 'ring', '') end
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# KEYS: lock, its number. ARGV: token, lease in ms. Returns the fencing number, or 0.
LOCK = Script(
    """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
return redis.call('INCR', KEYS[2])
"""
)

# KEYS: lock. ARGV: token.
UNLOCK = Script(
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0", flags="allow-oom"
)

# KEYS: locks, or sets of members. ARGV: for each its token and its lease in ms. Returns 1 for each that was kept.
RENEW = Script(
    _RING,
    """
local kept = {}
local time = now()
for index = 1, #KEYS do
    local key, token, lease = KEYS[index], ARGV[index * 2 - 1], tonumber(ARGV[index * 2])
    local kind = redis.call('TYPE', key).ok
    kept[index] = 0
    if kind == 'string' and redis.call('GET', key) == token then
        kept[index] = redis.call('PEXPIRE', key, lease)
    elseif kind == 'zset' and (tonumber(redis.call('ZSCORE', key, token)) or 0) > time then
        redis.call('ZADD', key, 'XX', time + lease, token)
        kept[index] = 1
    end
end
return kept
""",
    flags="allow-oom",
)

# KEYS: members, bell. ARGV: member, lease in ms.
ENTER = Script(_RING, "redis.call('ZADD', KEYS[1], now() + ARGV[2], ARGV[1]) ring(KEYS[2])")

# KEYS: members, bell. ARGV: member.
LEAVE = Script(_RING, "redis.call('ZREM', KEYS[1], ARGV[1]) ring(KEYS[2])", flags="allow-oom")

# KEYS: members, bell. Returns the bell's last id, ms until the next lease ends unless it is renewed (or -1), and the
# members. Those whose lease ended are not among them, and are removed if the server takes writes.
MEMBERS = Script(
    _RING,
    """
local time = now()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time)
local members = redis.call('ZRANGE', KEYS[1], 0, -1)
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
local rung = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
return {rung[1] and rung[1][1] or '0-0', next and next - time or -1, unpack(members)}
""",
    flags="allow-oom",
)

# --- groups: who has which message on loan -------------------------------------------------------------------

# Of a group of consumers, under one prefix (KEYS[1]):
#   cursor     hash: stream number -> id up to which its entries were taken up
#   free       zset, all scores 0, so in order of members: taken up, but not on loan; a member is "stream/id", padded
#              (in all else it is not padded)
#   loans      hash: member -> "attempts/consumer/key" of what is on loan
#   attempts   hash: member -> how often it was delivered before, of what is free or waits
#   until      zset: member -> ms when its loan ends (queues)
#   later      zset: member -> ms when it becomes free (queues: retried with a delay)
#   consumers  zset: consumer -> ms when its lease ends (topics); held:CONSUMER set: what it has on loan
#   busy       hash: key -> consumer that has messages of it on loan; counts hash: key -> how many
_GROUP = (
    _RING
    + """
local group = KEYS[1]
redis.call('EXISTS', group .. ':nothing')  -- while a cluster moves the slot, this fails, before anything is written
local function part(name) return group .. ':' .. name end
local CURSOR, FREE, LOANS, ATTEMPTS = part('cursor'), part('free'), part('loans'), part('attempts')
local UNTIL, LATER, CONSUMERS = part('until'), part('later'), part('consumers')
local BUSY, COUNTS = part('busy'), part('counts')
local function held(consumer) return part('held:' .. consumer) end

local function head_of(number) return string.format('%05d/', number) end
local function id_of(member) return string.sub(member, 7) end
local function number_of(member) return tonumber(string.sub(member, 1, 5)) end
local function padded(member)
    local ms, seq = string.match(member, '/(%d+)-(%d+)')
    return string.sub(member, 1, 6) .. string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end
local function unpadded(member)
    local ms, seq = string.match(member, '/0*(%d+)-0*(%d+)')
    return string.sub(member, 1, 6) .. ms .. '-' .. seq
end
local function loan_of(member)
    local loan = redis.call('HGET', LOANS, member)
    if not loan then return nil end
    local attempts, consumer, key = string.match(loan, '^(%d+)/([^/]*)/(.*)$')
    return attempts, consumer, key
end

-- In pieces: Lua can hand at most some 8,000 values to one command.
local function in_pieces(command, key, values, ...)
    for from = 1, #values, 4000 do
        local piece = {unpack(values, from, math.min(from + 3999, #values))}
        local before = {...}
        for index = 1, #piece do before[#before + 1] = piece[index] end
        redis.call(command, key, unpack(before))
    end
end

local function unbusy(consumer, key, member)
    redis.call('SREM', held(consumer), member)
    if string.sub(key, 1, 1) == '=' and redis.call('HINCRBY', COUNTS, key, -1) <= 0 then
        redis.call('HDEL', COUNTS, key)
        redis.call('HDEL', BUSY, key)
    end
end

-- From now on it may be lent again; at once, or when `ready`.
local function give_back(member, ready)
    local attempts, consumer, key = loan_of(member)
    if attempts then
        redis.call('HDEL', LOANS, member)
        redis.call('ZREM', UNTIL, member)
        redis.call('HSET', ATTEMPTS, member, attempts)
        unbusy(consumer, key, member)
    end
    if ready then redis.call('ZADD', LATER, ready, member) else redis.call('ZADD', FREE, 0, padded(member)) end
end

local function leave(consumer)
    for _, member in ipairs(redis.call('SMEMBERS', held(consumer))) do give_back(member) end
    redis.call('DEL', held(consumer))
    redis.call('ZREM', CONSUMERS, consumer)
end
"""
)

# KEYS: group, bell, delayed (queues: zset of packed messages by ms), streams in order of preference. ARGV: consumer,
# its lease in ms, limit, bytes, is queue, number of the stream to start with. Returns {1, {member, attempts, fields,
# …}} or, if there is nothing, {0, ms until time alone may free something (-1: never), bell's last id, cursors}.
TAKE = Script(
    _GROUP,
    """
local me, lease, limit, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local queue, start = ARGV[5] == '1', tonumber(ARGV[6])
local bell, delayed, streams = KEYS[2], KEYS[3], #KEYS - 3
local time = now()
local taken, loans, untils, tries, dropped, holds, keys = {}, {}, {}, {}, {}, {}, {}
local looked = 0
for number = 1, streams do redis.call('XLEN', KEYS[number + 3]) end

if queue then
    for _, due in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', time, 'LIMIT', 0, 1000)) do
        local message = cmsgpack.unpack(due)
        redis.call('ZREM', delayed, due)
        redis.call('XADD', KEYS[message[1] + 3], '*', unpack(message, 3))
    end
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', LATER, '-inf', time, 'LIMIT', 0, 1000)) do
        redis.call('ZREM', LATER, member)
        redis.call('ZADD', FREE, 0, padded(member))
    end
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', UNTIL, '-inf', time, 'LIMIT', 0, 1000)) do give_back(member) end
else
    for _, consumer in ipairs(redis.call('ZRANGEBYSCORE', CONSUMERS, '-inf', time)) do leave(consumer) end
    redis.call('ZADD', CONSUMERS, time + lease, me)
end

local function field(fields, name)
    for index = 1, #fields, 2 do if fields[index] == name then return fields[index + 1] end end
end

-- Lends it, unless another has its key (false).
local function lend(member, fields, attempts)
    local key = ''
    if queue then
        local expires = field(fields, 'expires')
        if expires and attempts == 0 and tonumber(expires) <= time then
            dropped[#dropped + 1] = member
            return true
        end
    else
        key = field(fields, 'key')
        key = key and '=' .. key or ''
        if key ~= '' then
            if not keys[key] then
                local owner = redis.call('HGET', BUSY, key)
                if owner and owner ~= me then return false end
                keys[key] = 0
            end
            keys[key] = keys[key] + 1
        end
        holds[#holds + 1] = member
    end
    loans[#loans + 1] = member
    loans[#loans + 1] = (attempts + 1) .. '/' .. me .. '/' .. key
    if queue then
        untils[#untils + 1] = time + lease
        untils[#untils + 1] = member
    end
    taken[#taken + 1] = member
    taken[#taken + 1] = attempts + 1
    taken[#taken + 1] = fields
    for index = 2, #fields, 2 do room = room - #fields[index] end
    limit = limit - 1
    return true
end

local function full() return limit <= 0 or room <= 0 or looked >= 2000 end

local function lend_free(number, stream)
    local from, to = string.format('[%05d/', number), string.format('(%05d0', number)
    while not full() do
        local members = redis.call('ZRANGEBYLEX', FREE, from, to, 'LIMIT', 0, math.min(limit, 500))
        if #members == 0 then return true end
        for _, place in ipairs(members) do
            if full() then return false end
            from = '(' .. place
            local member = unpadded(place)
            local id = id_of(member)
            local entry = redis.call('XRANGE', stream, id, id)[1]
            if not entry then
                dropped[#dropped + 1] = member
                redis.call('ZREM', FREE, place)
            elseif lend(member, entry[2], tonumber(redis.call('HGET', ATTEMPTS, member) or 0)) then
                redis.call('ZREM', FREE, place)
                tries[#tries + 1] = member
            else
                looked = looked + 1
            end
        end
    end
    return false
end

local function lend_new(number, stream)
    local head = head_of(number)
    while not full() do
        local cursor = redis.call('HGET', CURSOR, number)
        local from = cursor and '(' .. cursor or '-'
        local entries = redis.call('XRANGE', stream, from, '+', 'COUNT', math.min(limit, 500))
        if #entries == 0 then return end
        for _, entry in ipairs(entries) do
            if full() then break end
            cursor = entry[1]
            local member = head .. cursor
            if not lend(member, entry[2], 0) then
                redis.call('ZADD', FREE, 0, padded(member))
                looked = looked + 1
            end
        end
        redis.call('HSET', CURSOR, number, cursor)
    end
end

for step = 0, streams - 1 do
    local number = queue and step + 1 or (start + step) % streams + 1
    local stream = KEYS[number + 3]
    if lend_free(number, stream) then lend_new(number, stream) end
end

in_pieces('HSET', LOANS, loans)
in_pieces('ZADD', UNTIL, untils)
in_pieces('SADD', held(me), holds)
for key, count in pairs(keys) do
    if count > 0 then
        redis.call('HSET', BUSY, key, me)
        redis.call('HINCRBY', COUNTS, key, count)
    end
end
in_pieces('HDEL', ATTEMPTS, tries)
if #dropped > 0 then
    in_pieces('HDEL', ATTEMPTS, dropped)
    for _, member in ipairs(dropped) do
        if queue then redis.call('XDEL', KEYS[number_of(member) + 3], id_of(member)) end
    end
end
if #taken > 0 then return {1, taken} end

local due = -1
for _, set in ipairs({delayed, LATER, UNTIL, CONSUMERS}) do
    local range = {'ZRANGEBYSCORE', set, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 2}
    local first = redis.call(unpack(range))
    local score = first[2]
    if set == CONSUMERS and first[1] == me then score = first[4] end
    if score and (due < 0 or score - time < due) then due = math.max(score - time, 0) end
end
local rung = redis.call('XREVRANGE', bell, '+', '-', 'COUNT', 1)[1]
local cursors = {}
for number = 1, streams do cursors[number] = redis.call('HGET', CURSOR, number) or '0-0' end
return {0, math.ceil(due), rung and rung[1] or '0-0', cursors}
""",
)

_SETTLE = """
-- Whether it is still on loan as the caller knows it: each time it is lent, attempts grow. Also its key.
local function is_mine(member, attempts, consumer)
    local current, owner, key = loan_of(member)
    return current == attempts and owner == consumer, key
end
"""

# KEYS: group, bell, groups (queues: set of all), streams. ARGV: is queue, prefix of groups, consumer, then member and
# attempts of each. Returns the indexes of those that were no longer the caller's; the others are done.
DONE = Script(
    _GROUP,
    _SETTLE,
    """
local queue, me = ARGV[1] == '1', ARGV[3]
local stale, members, gone = {}, {}, {}
local others = {}
if queue then
    for _, name in ipairs(redis.call('SMEMBERS', KEYS[3])) do
        if ARGV[2] .. name ~= group then others[#others + 1] = ARGV[2] .. name end
    end
end
-- Whether another group has yet to see or to finish it.
local function wanted(number, member)
    for _, other in ipairs(others) do
        local cursor = redis.call('HGET', other .. ':cursor', number)
        if not cursor or padded(head_of(number) .. cursor) < padded(member) then return true end
        if redis.call('HEXISTS', other .. ':loans', member) == 1 then return true end
        if redis.call('ZSCORE', other .. ':later', member) then return true end
        if redis.call('ZSCORE', other .. ':free', padded(member)) then return true end
    end
    return false
end
local function done(member)
    members[#members + 1] = member
    local number = number_of(member)
    if not queue or wanted(number, member) then return end
    local ids = gone[number]
    if not ids then ids = {} gone[number] = ids end
    ids[#ids + 1] = id_of(member)
end
if queue then
    for from = 4, #ARGV, 3000 do
        local till, asked = math.min(from + 2999, #ARGV), {}
        for at = from, till, 2 do asked[#asked + 1] = ARGV[at] end
        local current = redis.call('HMGET', LOANS, unpack(asked))
        for index, member in ipairs(asked) do
            local at = from + (index - 1) * 2
            if current[index] == ARGV[at + 1] .. '/' .. me .. '/' then
                done(member)
            else
                stale[#stale + 1] = (at - 4) / 2
            end
        end
    end
else
    for at = 4, #ARGV, 2 do
        local mine, key = is_mine(ARGV[at], ARGV[at + 1], me)
        if mine then
            done(ARGV[at])
            unbusy(me, key, ARGV[at])
        else
            stale[#stale + 1] = (at - 4) / 2
        end
    end
end
in_pieces('HDEL', LOANS, members)
if queue then
    in_pieces('ZREM', UNTIL, members)
    for number, ids in pairs(gone) do in_pieces('XDEL', KEYS[number + 3], ids) end
elseif #members > 0 and redis.call('ZCARD', CONSUMERS) > 1 then
    ring(KEYS[2])
end
return stale
""",
    flags="allow-oom",
)

# KEYS: group. ARGV: consumer, lease in ms, then member and attempts of each. Returns the indexes of those that were no
# longer the caller's; the others are extended.
EXTEND = Script(
    _GROUP,
    _SETTLE,
    """
local stale, till = {}, now() + ARGV[2]
for at = 3, #ARGV, 2 do
    if is_mine(ARGV[at], ARGV[at + 1], ARGV[1]) then
        redis.call('ZADD', UNTIL, till, ARGV[at])
    else
        stale[#stale + 1] = (at - 3) / 2
    end
end
return stale
""",
    flags="allow-oom",
)

# KEYS: group, bell. ARGV: consumer, delay in ms, then member and attempts of each. Returns as EXTEND.
RETRY = Script(
    _GROUP,
    _SETTLE,
    """
local stale, delay = {}, tonumber(ARGV[2])
for at = 3, #ARGV, 2 do
    if is_mine(ARGV[at], ARGV[at + 1], ARGV[1]) then
        give_back(ARGV[at], delay > 0 and now() + delay or nil)
    else
        stale[#stale + 1] = (at - 3) / 2
    end
end
ring(KEYS[2])
return stale
""",
    flags="allow-oom",
)

# KEYS: group, bell. ARGV: consumer, then member and attempts of what a queue's consumer has on loan.
CLOSE = Script(
    _GROUP,
    _SETTLE,
    """
for at = 2, #ARGV, 2 do
    if is_mine(ARGV[at], ARGV[at + 1], ARGV[1]) then give_back(ARGV[at]) end
end
leave(ARGV[1])
ring(KEYS[2])
""",
    flags="allow-oom",
)

# KEYS: group. ARGV: consumer. Returns {member, attempts, …} of all that a topic's consumer has on loan.
HELD = Script(
    _GROUP,
    """
local found = {}
for _, member in ipairs(redis.call('SMEMBERS', held(ARGV[1]))) do
    found[#found + 1] = member
    found[#found + 1] = tonumber(loan_of(member) or 0)
end
return found
""",
    flags="no-writes",
)

# KEYS: bell, delayed, streams. ARGV: of each message the number of its stream, a unique name, ms until it may be
# delivered (0: at once), ms until it expires (-1: never), the number of its fields and values, those.
PUT = Script(
    _RING,
    """
local time = now()
local at, late = 1, false
for index = 3, #KEYS do redis.call('XLEN', KEYS[index]) end
redis.call('ZCARD', KEYS[2])
while at <= #ARGV do
    local stream, name = tonumber(ARGV[at]), ARGV[at + 1]
    local delay, expires, width = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    local fields = {unpack(ARGV, at + 5, at + 4 + width)}
    at = at + 5 + width
    if expires >= 0 then
        fields[#fields + 1] = 'expires'
        fields[#fields + 1] = string.format('%.0f', time + expires)
    end
    if delay > 0 then
        redis.call('ZADD', KEYS[2], time + delay, cmsgpack.pack({stream, name, unpack(fields)}))
        late = true
    else
        redis.call('XADD', KEYS[stream + 2], '*', unpack(fields))
    end
end
if late then ring(KEYS[1]) end
""",
)

SCRIPTS = (
    *(APPEND, CLAIM, COMMIT, BOUNDS, TRIM),
    *(LOCK, UNLOCK, RENEW, ENTER, LEAVE, MEMBERS),
    *(TAKE, DONE, EXTEND, RETRY, CLOSE, HELD, PUT),
)
