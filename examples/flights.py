"""A year of flights: all that left New York in 2013, streamed through agents and tables.

    python examples/flights.py                                   # 336,776 flights, in memory
    python examples/flights.py --broker sqlite:///flights.db     # the same program, on a broker that keeps things

The second form survives `kill -9`: started again, it goes on where it was, and no flight is lost or counted twice.
Started once more when all is done, it shows the same numbers. Delete flights.db to begin anew.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from datetime import date
from time import perf_counter

import flights_show
import msgspec
from flights_data import Airline, Airport, Flight, Plane, Weather, read
from thalweg import App, StaleRead, Stream

VERY_LATE, IN_A_ROW = 120, 3  # an alert: an aircraft left 120 minutes late, three times in a row


class Alert(msgspec.Struct, frozen=True):
    """With the flight that raised it; the plane and the weather where they are known."""

    flight: Flight
    plane: Plane | None
    weather: Weather | None


class Aircraft(msgspec.Struct):
    flights: int = 0
    late_in_a_row: int = 0
    alerts: int = 0


class Delays(msgspec.Struct):
    """Of an airline. Sums are in minutes."""

    flights: int = 0
    departed: int = 0
    departure_sum: int = 0
    late: int = 0  # departed more than 15 minutes late
    arrived: int = 0
    arrival_sum: int = 0

    def add(self, flight: Flight) -> None:
        self.flights += 1
        if flight.dep_delay is not None:
            self.departed += 1
            self.departure_sum += flight.dep_delay
            self.late += flight.dep_delay > 15
        if flight.arr_delay is not None:
            self.arrived += 1
            self.arrival_sum += flight.arr_delay


# --- topics and tables ---------------------------------------------------------------------------------------------

app = App("flights")

# The key is the aircraft, so its flights keep their order. A flight without one has no key: its order matters to none.
flights = app.topic("flights", value=Flight, key_of=lambda f: f.tailnum, timestamp_of=lambda f: f.scheduled)
alerts = app.topic("alerts", value=Alert, key_of=lambda alert: alert.flight.tailnum)
# All days have the same key: events of a key keep their order, even when one of them has to be tried again.
days = app.topic("days", value=date, key_of=lambda day: "2013", partitions=1)

departed = app.table("departed", key=date, value=int, default=int, like=days)
delays = app.table("delays", value=Delays, default=Delays)
routes = app.table("routes", value=int, default=int)
aircraft = app.table("aircraft", value=Aircraft, default=Aircraft)
alarms = app.table("alarms", value=list[Alert], default=list)

# Reference data: topics that every worker reads as a table, whole.
airline_topic = app.topic("airlines", value=Airline, compact=True)
airport_topic = app.topic("airports", value=Airport, compact=True)
plane_topic = app.topic("planes", value=Plane, compact=True)
weather_topic = app.topic("weather", value=Weather, compact=True)
airlines = airline_topic.table("airlines", replicated=True)
airports = airport_topic.table("airports", replicated=True)
planes = plane_topic.table("planes", replicated=True)
weather = weather_topic.table("weather", replicated=True)

# --- agents --------------------------------------------------------------------------------------------------------

timetable: dict[date, list[Flight]] = defaultdict(list)


@app.agent(days)
async def depart(stream: Stream[date]) -> None:
    """Let a day's flights leave. They and how far that got are one commit: a crash neither loses nor doubles any."""
    async for day in stream:
        waiting = timetable[day][departed[day] :]
        for flight in waiting:
            await flights.send(flight)
        departed[day] += len(waiting)


@app.agent(flights.stream().group_by(lambda flight: flight.carrier, name="by-airline"))
async def rate_airlines(stream: Stream[Flight]) -> None:
    async for flight in stream:
        delays[flight.carrier].add(flight)


@app.agent(flights.stream().group_by(lambda flight: flight.route, name="by-route"))
async def count_routes(stream: Stream[Flight]) -> None:
    async for flight in stream:
        routes[flight.route] += 1


@app.agent(flights, sinks=[alerts])
async def watch_aircraft(stream: Stream[Flight]) -> AsyncIterator[Alert]:
    """What an agent yields goes to its sinks."""
    async for flight in stream:
        if flight.tailnum is None:
            continue
        plane = aircraft[flight.tailnum]
        plane.flights += 1
        if flight.dep_delay is not None:
            plane.late_in_a_row = plane.late_in_a_row + 1 if flight.dep_delay >= VERY_LATE else 0
            if plane.late_in_a_row == IN_A_ROW:
                plane.alerts += 1
                yield Alert(flight, planes.get(flight.tailnum), weather.get(flight.sky))


@app.agent(alerts)
async def keep_alerts(stream: Stream[Alert]) -> None:
    async for alert in stream.events():
        alarms[alert.key].append(alert.value)


# --- a run: send the data, wait until all is counted ---------------------------------------------------------------


class Results(msgspec.Struct):
    airlines: dict[str, Delays]  # by name
    airports: dict[str, str]  # names by code
    routes: dict[str, int]
    aircraft: dict[str, Aircraft]
    alerts: list[Alert]
    counted: int  # flights, in this run
    seconds: float
    guarantee: str


async def run(limit: int | None = None, progress: Callable[[int, int, int], None] = lambda *_: None) -> Results:
    """Let the first `limit` flights of the year leave (None: all), and return when they are counted.

    progress: is called with the numbers of flights that have left, that are counted, and of all.
    """
    planned = sorted(read("flights", Flight), key=lambda flight: flight.scheduled)[:limit]
    for flight in planned:
        timetable[flight.scheduled.date()].append(flight)
    with_aircraft = sum(flight.tailnum is not None for flight in planned)

    def all_counted() -> bool:
        try:
            progress(sum(departed.values()), counted(), len(planned))
            return (
                counted() >= len(planned)
                and sum(routes.values()) >= len(planned)
                and sum(plane.flights for plane in aircraft.values()) >= with_aircraft
                and sum(map(len, alarms.values())) >= sum(plane.alerts for plane in aircraft.values())
            )
        except StaleRead:  # a partition starts over: its rows cannot be counted just now
            return False

    async with app.client():  # first, because a replicated table holds all there was when its worker started
        await airline_topic.send_many((airline.carrier, airline) for airline in read("airlines", Airline))
        await airport_topic.send_many((airport.faa, airport) for airport in read("airports", Airport))
        await plane_topic.send_many((plane.tailnum, plane) for plane in read("planes", Plane))
        await weather_topic.send_many((hour.sky, hour) for hour in read("weather", Weather))

    async with app:
        start, before = perf_counter(), counted()
        await days.send_many((None, day) for day in timetable)  # after a crash again: `depart` knows what has left
        while not all_counted():  # noqa: ASYNC110 - a table tells nobody that it changed
            await asyncio.sleep(0.1)
        return Results(
            airlines={airlines[carrier].name: row for carrier, row in delays.items()},
            airports={code: airport.name for code, airport in airports.items()},
            routes=dict(routes.items()),
            aircraft=dict(aircraft.items()),
            alerts=sorted(
                (alert for list_ in alarms.values() for alert in list_),
                key=lambda alert: (alert.flight.scheduled, str(alert.flight.tailnum)),
            ),
            counted=counted() - before,
            seconds=perf_counter() - start,
            guarantee=app.guarantee,
        )


def counted() -> int:
    return sum(row.flights for row in delays.values())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--broker", metavar="URL", help="default: THALWEG_BROKER, else memory://")
    options.add_argument("--store", metavar="URL", help="default: THALWEG_STORE, else memory://")
    options.add_argument("--flights", metavar="N", type=int, help="only the first N flights of the year")
    given = options.parse_args()
    if given.broker is not None:
        app.broker = given.broker
    if given.store is not None:
        app.store = given.store
    with flights_show.progress() as progress:
        results = asyncio.run(run(given.flights, progress))
    flights_show.report(results)


if __name__ == "__main__":
    main()
