"""Worlds and requests of VehicleControlAPI."""

from __future__ import annotations

import random
from typing import Any

from rcgrpo.environments.bfcl.synthetic.scene import Request, Scene, Unfit
from rcgrpo.environments.bfcl.synthetic.words import ROADS, STREETS, TOWNS

CLASS = "VehicleControlAPI"
DOORS = ("driver", "passenger", "rear_left", "rear_right")
TANK = 50
"""Gallons."""


def config(rng: random.Random) -> dict[str, Any]:
    """A car with some fuel, mostly standing still with open doors."""
    doors = {door: rng.choice(("unlocked", "unlocked", "locked")) for door in DOORS}
    return {
        "random_seed": rng.randint(1, 10**6),
        "fuelLevel": rng.choice((0.0, 5.0, 10.0, 15.5, 20.0, float(rng.randint(1, 45)), rng.randint(2, 90) / 2)),
        "batteryVoltage": round(rng.uniform(11.5, 13.5), 1),
        "engineState": "stopped",
        "doorStatus": doors,
        "acTemperature": float(rng.randint(16, 28)),
        "fanSpeed": 10 * rng.randint(1, 10),
        "acMode": rng.choice(("auto", "cool", "heat")),
        "humidityLevel": float(rng.randint(30, 70)),
        "headLightStatus": rng.choice(("on", "off")),
        "parkingBrakeStatus": rng.choice(("released", "released", "engaged")),
        "parkingBrakeForce": 0.0,
        "slopeAngle": 0.0,
        "distanceToNextVehicle": float(rng.randint(20, 150)),
        "cruiseStatus": "inactive",
        "destination": rng.choice(("None", *TOWNS)),
        **{
            f"{end}{side}TirePressure": float(rng.randint(26, 40))
            for end in ("front", "rear")
            for side in ("Left", "Right")
        },
    }


def _car(s: Scene) -> Any:
    return s.api(CLASS)


def _lock(s: Scene) -> None:
    s.do("lockDoors", unlock=False, door=list(DOORS))


def start(s: Scene) -> Request:
    if _car(s).engine_state == "running":
        raise Unfit("it runs")
    brake = s.maybe(0.3)
    if brake:
        s.do("activateParkingBrake", mode="engage")
    if _car(s).remainingUnlockedDoors:
        _lock(s)
    elif not s.known("doors"):
        raise Unfit("the doors are not known to be locked")
    s.do("pressBrakePedal", pedalPosition=1.0)
    s.do("startEngine", ignitionMode="START")
    s.last["doors"] = True
    ask = s.say(
        "Start the engine{b}.",
        "Get the engine running{b}, and see to it that everything is safe for that.",
        "Start the car in START mode{b}. All doors have to be locked.",
        "I want to set off now: lock the doors and start the engine{b}.",
        "Fire up the car for me{b}, with the doors locked and the brake pressed.",
        "Please switch the ignition on and get us going{b}.",
        b=s.say(" with the parking brake engaged", ", the handbrake on") if brake else "",
    )
    return Request(ask, (s.say("Get the car ready.", "I want to go."), ask))


def lock_doors(s: Scene) -> Request:
    if "doors" in s.last:
        raise Unfit("done")
    _lock(s)
    s.last["doors"] = True
    return Request(
        s.say(
            "Lock all doors of the car.",
            "Make sure that every door is locked.",
            "See to it that the car is locked, all four doors.",
            "Secure all the doors, please.",
        )
    )


def unlock_doors(s: Scene) -> Request:
    doors = [door for door in DOORS if s.maybe(0.5)] or ["driver"]
    s.do("lockDoors", unlock=True, door=doors)
    s.last.pop("doors", None)
    named = " and the ".join(door.replace("_", " ") for door in doors)
    return Request(s.say("Unlock the {d} door{n}.", d=named, n="s" * (len(doors) > 1)))


def _room(s: Scene) -> float:
    return TANK - _car(s).fuelLevel


def fill_by(s: Scene) -> Request:
    gallons = s.pick((5, 10, 15, 20, 25, 30, 35, 40, s.rng.randint(3, 45)))
    s.do("fillFuelTank", fuelAmount=gallons)
    ask = s.say(
        "Fill in {g} gallons of fuel.",
        "Add {g} gallons to the tank.",
        "I need {g} more gallons of gasoline in the car.",
        "Top up the car with another {g} gallons.",
        g=gallons,
    )
    return Request(ask, (s.say("Fill in some fuel.", "Add fuel to the tank."), s.say("{g} gallons.", g=gallons)))


def _look_at_fuel(s: Scene) -> None:
    if s.last.get("fuel") != _car(s).fuelLevel:
        s.do("displayCarStatus", option="fuel")
        s.last["fuel"] = _car(s).fuelLevel


def fill_up(s: Scene) -> Request:
    _look_at_fuel(s)
    if not _room(s):
        raise Unfit("full")
    s.do("fillFuelTank", fuelAmount=_room(s))
    s.last["fuel"] = _car(s).fuelLevel
    return Request(
        s.say(
            "Fill the tank up completely.",
            "Make the tank full.",
            "I want a full tank of fuel.",
            "Refuel the car until nothing more fits in.",
            "Top the fuel up to its maximum of 50 gallons.",
        )
    )


def fill_to(s: Scene) -> Request:
    _look_at_fuel(s)
    target = 5 * s.rng.randint(4, 10)
    missing = target - _car(s).fuelLevel
    if missing <= 0:
        raise Unfit("enough")
    s.do("fillFuelTank", fuelAmount=missing)
    s.last["fuel"] = _car(s).fuelLevel
    ask = s.say(
        "Fill the tank so that it holds {t} gallons in the end.",
        "I want to have {t} gallons in total in the tank, fill in what is missing.",
        "Refuel until there are {t} gallons.",
        t=target,
    )
    vague = s.say("Fill the tank to a certain level.", "Fill in what is missing.")
    return Request(ask, (vague, f"There should be {target} gallons in the end."))


def fill_liters(s: Scene) -> Request:
    liters = s.rng.randint(5, 150)
    gallons = s.do("liter_to_gallon", liter=liters)["gallon"]
    whole = s.maybe(0.3)
    s.do("fillFuelTank", fuelAmount=round(gallons) if whole else round(gallons, 2))
    digits = "whole gallons, rounded" if whole else "two decimals of a gallon"
    ask = s.say(
        "Fill in {x} liters of gasoline. Use {d}.",
        "Put {x} liters into the tank, with {d}.",
        "I want {x} more liters of fuel; the pump takes {d}.",
        x=liters,
        d=digits,
    )
    return Request(ask, (f"Put some liters into the tank, with {digits}.", f"{liters} liters."))


def liters(s: Scene) -> Request:
    if s.maybe(0.3):
        _look_at_fuel(s)
        s.do("gallon_to_liter", gallon=_car(s).fuelLevel)
        return Request(s.say("How many liters of fuel are in the tank?", "What is my fuel level in liters?"))
    amount = s.rng.randint(3, 99)
    if s.maybe(0.5):
        s.do("gallon_to_liter", gallon=amount)
        ask = s.say("How many liters are {x} gallons?", "Convert {x} gallons to liters.", x=amount)
        return Request(ask, ("Convert some gallons to liters.", f"{amount} gallons."))
    s.do("liter_to_gallon", liter=amount)
    ask = s.say("How many gallons are {x} liters?", "Convert {x} liters to gallons.", x=amount)
    return Request(ask, ("Convert some liters to gallons.", f"{amount} liters."))


def _distance(s: Scene) -> tuple[str, str, float]:
    a, b = s.sample(s.pick(ROADS), 2)
    codes = [s.do("get_zipcode_based_on_city", city=city)["zipcode"] for city in (a, b)]
    distance = s.do("estimate_distance", cityA=codes[0], cityB=codes[1])["distance"]
    s.last["distance"] = distance
    s.last["fact"] = (f"The distance from {a} to {b} is XXX km.", "the distance", distance)
    return a, b, distance


def distance(s: Scene) -> Request:
    a, b, _ = _distance(s)
    ask = s.say(
        "How far is it from {a} to {b}?",
        "I am going from {a} to {b} and want to know the distance.",
        "Estimate the distance between {a} and {b}.",
        "What is the distance to {b}, if I start in {a}?",
        a=a,
        b=b,
    )
    vague = s.say("How far is it to {b}?", "I want to know the distance to {b}.", b=b)
    return Request(ask, (vague, f"I start in {a}."))


def distance_and_fuel(s: Scene) -> Request:
    a, b, distance = _distance(s)
    s.do("estimate_drive_feasibility_by_mileage", distance=distance)
    return Request(
        s.say(
            "How far is it from {a} to {b}, and will my fuel last?",
            "I want to drive from {a} to {b}. Tell me the distance, and whether my fuel will do.",
            a=a,
            b=b,
        )
    )


def feasible(s: Scene) -> Request:
    if "distance" in s.last and s.maybe(0.7):
        s.do("estimate_drive_feasibility_by_mileage", distance=s.last["distance"])
        return Request(
            s.say(
                "Can I make that trip with the fuel that I have?",
                "Is my fuel enough for this distance?",
                "Will the car get that far, or do I have to refuel?",
            )
        )
    miles = 10 * s.rng.randint(5, 120)
    s.do("estimate_drive_feasibility_by_mileage", distance=miles)
    ask = s.say(
        "Can the car drive {m} miles as it is?", "Is a trip of {m} miles possible with the fuel I have?", m=miles
    )
    return Request(ask, ("Can the car get that far with its fuel?", f"It is {miles} miles."))


def tires(s: Scene) -> Request:
    s.do("check_tire_pressure")
    return Request(
        s.say(
            "Check the tire pressure.",
            "How are the tires?",
            "What pressure do my tires have?",
            "I would like to know whether the tires are all right.",
        )
    )


def tires_and_shop(s: Scene) -> Request:
    limit = s.rng.randint(28, 42)
    result = s.do("check_tire_pressure")
    low = any(value < limit for key, value in result.items() if key.endswith("TirePressure"))
    drive = s.maybe(0.5)
    if low:
        shop = s.do("find_nearest_tire_shop")["shopLocation"]
        s.last["place"] = shop
        if drive:
            s.do("set_navigation", destination=shop)
    what = s.say("set the navigation to the nearest tire shop", "guide me to the closest tire shop")
    if not drive:
        what = s.say("tell me where the nearest tire shop is", "find the closest tire shop")
    ask = s.say(
        "Check the tires. If one has less than {x} PSI, {w}.",
        "If any of my tires is below {x}, {w}.",
        "Have a look at the tire pressure and {w} if it is under {x} anywhere.",
        x=limit,
        w=what,
    )
    return Request(ask, (f"Check the tires. If one is too low, {what}.", f"Too low is below {limit} PSI."))


def shop(s: Scene) -> Request:
    s.last["place"] = s.do("find_nearest_tire_shop")["shopLocation"]
    return Request(s.say("Where is the nearest tire shop?", "Find me a place that fixes tires.", "I need a tire shop."))


def navigate_there(s: Scene) -> Request:
    s.do("set_navigation", destination=s.known("place"))
    return Request(s.say("Set the navigation to that shop.", "Guide me there.", "Take me to this place, please."))


def navigate(s: Scene) -> Request:
    street = f"{s.rng.randint(1, 990)} {s.pick(STREETS)}"
    place = s.pick(
        (s.pick(TOWNS), f"{street}, {s.pick(TOWNS)}", f"{street}, {s.pick(TOWNS)}, CA {s.rng.randint(90001, 96100)}")
    )
    s.do("set_navigation", destination=place)
    ask = s.say(
        "Set the navigation to {p}.",
        "Guide me to {p}.",
        "I want to go to {p}, set the GPS.",
        "Enter the destination '{p}'.",
        p=place,
    )
    return Request(ask, (s.say("Set the navigation.", "Enter a destination."), f"To {place}."))


def status(s: Scene) -> Request:
    option, word = s.pick(
        (
            ("fuel", "fuel"),
            ("battery", "battery"),
            ("doors", "doors"),
            ("climate", "air conditioning"),
            ("headlights", "headlights"),
            ("parkingBrake", "parking brake"),
            ("engine", "engine"),
        )
    )
    s.do("displayCarStatus", option=option)
    if option == "fuel":
        s.last["fuel"] = _car(s).fuelLevel
    ask = s.say("Show me the state of the {w}.", "What is the status of the {w}?", "Check the {w} of the car.", w=word)
    return Request(ask, (s.say("Show me the status of something."), f"Of the {word}."))


def parking_brake(s: Scene) -> Request:
    mode = s.pick(("engage", "engage", "release"))
    s.do("activateParkingBrake", mode=mode)
    return Request(s.say("{m} the parking brake.", "{m} the handbrake, please.", m=mode.title()))


def headlights(s: Scene) -> Request:
    mode = s.pick(("on", "off"))
    s.do("setHeadlights", mode=mode)
    return Request(s.say("Switch the headlights {m}.", "Turn the lights of the car {m}.", m=mode))


def climate(s: Scene) -> Request:
    degrees, mode = s.rng.randint(16, 28), s.pick(("auto", "cool", "heat", "defrost"))
    fan = 10 * s.rng.randint(1, 10)
    s.do("adjustClimateControl", temperature=degrees, fanSpeed=fan, mode=mode)
    ask = s.say("Set the climate control to {t} degrees, {m} mode, fan at {f}.", t=degrees, m=mode, f=fan)
    return Request(ask, (f"Set the climate control to {mode} mode, fan at {fan}.", f"At {degrees} degrees."))


def cruise(s: Scene) -> Request:
    if _car(s).engine_state != "running":
        raise Unfit("it does not run")
    speed, gap = 5 * s.rng.randint(6, 22), 10 * s.rng.randint(3, 15)
    s.do("setCruiseControl", speed=speed, activate=True, distanceToNextVehicle=gap)
    ask = s.say("Set the cruise control to {v}, {g} meters behind the next car.", v=speed, g=gap)
    return Request(ask, (f"Set the cruise control, {gap} meters behind the next car.", f"At a speed of {speed}."))


def outside(s: Scene) -> Request:
    s.do("get_outside_temperature_from_google")
    return Request(s.say("How warm is it outside, says Google?", "Ask Google for the temperature outside."))


def brake_pedal(s: Scene) -> Request:
    if s.maybe(0.5):
        s.do("pressBrakePedal", pedalPosition=1.0)
        return Request(s.say("Press the brake pedal fully.", "Step on the brake, all the way down."))
    s.do("releaseBrakePedal")
    return Request(s.say("Release the brake pedal.", "Take the foot off the brake."))


KINDS = (
    *(start,) * 10, *(lock_doors,) * 2, unlock_doors, *(fill_by,) * 4, *(fill_up,) * 4, *(fill_to,) * 2,
    *(fill_liters,) * 3, *(liters,) * 2, *(distance,) * 7, *(distance_and_fuel,) * 2, *(feasible,) * 3, *(tires,) * 4,
    *(tires_and_shop,) * 4, shop, *(navigate_there,) * 3, *(navigate,) * 3, *(status,) * 3, *(parking_brake,) * 2,
    headlights, climate, cruise, outside, brake_pedal,
)  # fmt: skip
"""The kinds of request, the frequent ones several times."""
