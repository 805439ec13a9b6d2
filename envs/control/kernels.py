"""Compiled loops of the worlds with continuous states. Imported on first use only."""

from __future__ import annotations

import math

import numba


@numba.njit(cache=True)
def _improve(value, policy, gain, index, weight, forward):  # type: ignore[no-untyped-def]
    n, n_actions, corners = index.shape
    change = 0.0
    for i in range(n):
        s = i if forward else n - 1 - i
        best = -1e300
        for a in range(n_actions):
            q = gain[s, a]
            for c in range(corners):
                q += weight[s, a, c] * value[index[s, a, c]]
            if q > best:
                best = q
                policy[s] = a
        change = max(change, abs(best - value[s]))
        value[s] = best
    return change


@numba.njit(cache=True)
def _evaluate(value, policy, gain, index, weight, forward):  # type: ignore[no-untyped-def]
    n, _, corners = index.shape
    for i in range(n):
        s = i if forward else n - 1 - i
        a = policy[s]
        q = gain[s, a]
        for c in range(corners):
            q += weight[s, a, c] * value[index[s, a, c]]
        value[s] = q


@numba.njit(cache=True)
def solve(value, policy, gain, index, weight, tolerance, rounds):  # type: ignore[no-untyped-def]
    """Solve `value[s] = max_a gain[s, a] + Σ_c weight[s, a, c] value[index[s, a, c]]` in place; the rounds it took.

    Modified policy iteration, in place (source: Puterman and Shin 1978): one improvement, then a few evaluations of
    the policy found, sweeping forward and backward in turn.
    """
    for r in range(rounds):
        change = _improve(value, policy, gain, index, weight, r % 2 == 0)
        if change < tolerance:
            return r + 1
        for k in range(12):
            _evaluate(value, policy, gain, index, weight, (r + k) % 2 == 1)
    return rounds


@numba.njit(cache=True, inline="always")
def _acrobot_slope(t1, t2, v1, v2, torque):  # type: ignore[no-untyped-def]
    # equations of motion of Sutton and Barto's book, with unit links and masses, centres of mass in the middle
    cos2, sin2 = math.cos(t2), math.sin(t2)
    d1 = 0.25 + (1.25 + cos2) + 2.0
    d2 = (0.25 + 0.5 * cos2) + 1.0
    phi2 = 0.5 * 9.8 * math.cos(t1 + t2 - math.pi / 2.0)
    phi1 = -0.5 * v2 * v2 * sin2 - v2 * v1 * sin2 + 1.5 * 9.8 * math.cos(t1 - math.pi / 2) + phi2
    a2 = (torque + d2 / d1 * phi1 - 0.5 * v1 * v1 * sin2 - phi2) / (1.25 - d2 * d2 / d1)
    return -(d2 * a2 + phi1) / d1, a2


@numba.njit(cache=True, inline="always")
def _around(x):  # type: ignore[no-untyped-def]
    while x > math.pi:
        x -= 2 * math.pi
    while x < -math.pi:
        x += 2 * math.pi
    return x


@numba.njit(cache=True)
def acrobot_step(t1, t2, v1, v2, torque):  # type: ignore[no-untyped-def]
    """One step of 0.2 s of one acrobot: the four numbers of its next state."""
    h = 0.1
    a1, b1 = _acrobot_slope(t1, t2, v1, v2, torque)
    w1, u1 = v1 + h * a1, v2 + h * b1
    a2, b2 = _acrobot_slope(t1 + h * v1, t2 + h * v2, w1, u1, torque)
    w2, u2 = v1 + h * a2, v2 + h * b2
    a3, b3 = _acrobot_slope(t1 + h * w1, t2 + h * u1, w2, u2, torque)
    w3, u3 = v1 + 2 * h * a3, v2 + 2 * h * b3
    a4, b4 = _acrobot_slope(t1 + 2 * h * w2, t2 + 2 * h * u2, w3, u3, torque)
    third = h / 3.0
    n1 = _around(t1 + third * (v1 + 2 * w1 + 2 * w2 + w3))
    n2 = _around(t2 + third * (v2 + 2 * u1 + 2 * u2 + u3))
    m1 = v1 + third * (a1 + 2 * a2 + 2 * a3 + a4)
    m2 = v2 + third * (b1 + 2 * b2 + 2 * b3 + b4)
    top1, top2 = 4 * math.pi, 9 * math.pi
    return n1, n2, min(max(m1, -top1), top1), min(max(m2, -top2), top2)


@numba.njit(cache=True)
def acrobot_steps(state, torque):  # type: ignore[no-untyped-def]
    """One step of each row of `state` `[B, 4]`, in place, under `torque` `[B]`."""
    for i in range(len(state)):
        state[i, 0], state[i, 1], state[i, 2], state[i, 3] = acrobot_step(
            state[i, 0], state[i, 1], state[i, 2], state[i, 3], torque[i]
        )


@numba.njit(cache=True, inline="always")
def _acrobot_pump(t1, t2, v1, v2, p):  # type: ignore[no-untyped-def]
    lean = p[2] * math.sin(t1) + p[3] * math.sin(t2) + p[4] * math.sin(t1 + t2)
    return 1.0 if p[0] * v1 + p[1] * v2 + lean + p[5] * v1 * math.cos(t2) > 0 else -1.0


@numba.njit(cache=True)
def _acrobot_worth(t1, t2, v1, v2, action, p, low, high, hold, gamma, window, beat):  # type: ignore[no-untyped-def]
    """Discounted worth of one action and then a controller; stops as soon as it cannot exceed `beat`."""
    worth, discount, torque, last = 0.0, 1.0, action - 1.0, gamma ** (window + 1)
    for _ in range(window):
        t1, t2, v1, v2 = acrobot_step(t1, t2, v1, v2, torque)
        discount *= gamma
        if low <= -math.cos(t1) - math.cos(t1 + t2) <= high:
            worth += discount
            if not hold:
                return worth
        if worth + ((discount * gamma - last) / (1 - gamma) if hold else discount * gamma) <= beat:
            return worth
        torque = _acrobot_pump(t1, t2, v1, v2, p)
    return worth


@numba.njit(cache=True)
def acrobot_choose(state, controllers, low, high, hold, gamma, window, out):  # type: ignore[no-untyped-def]
    """The best first action before any controller, for each state `[B, 4]`; the first controller's of equals."""
    for i in range(len(state)):
        t1, t2, v1, v2 = state[i]
        best = 0.0
        out[i] = 2 if _acrobot_pump(t1, t2, v1, v2, controllers[0]) > 0 else 0
        for k in range(len(controllers)):
            for a in range(3):
                p = controllers[k]
                worth = _acrobot_worth(t1, t2, v1, v2, a, p, low, high, hold, gamma, window, best)
                if worth > best:
                    best, out[i] = worth, a


@numba.njit(cache=True, inline="always")
def _cart_pole_step(x, v, t, w, action):  # type: ignore[no-untyped-def]
    cos, sin = math.cos(t), math.sin(t)
    force = 10.0 if action == 1 else -10.0
    temp = (force + 0.05 * w * w * sin) / 1.1
    t_acc = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * cos * cos / 1.1))
    x_acc = temp - 0.05 * t_acc * cos / 1.1
    return x + 0.02 * v, v + 0.02 * x_acc, t + 0.02 * w, w + 0.02 * t_acc


@numba.njit(cache=True, inline="always")
def _cart_pole_steer(x, v, t, w, centre, p):  # type: ignore[no-untyped-def]
    speed = min(max(p[0] * (centre - x), -p[1]), p[1])
    lean = min(max(p[2] * (speed - v), -p[3]), p[3])
    return 1 if t - lean + p[4] * w > 0 else 0


@numba.njit(cache=True)
def _cart_pole_worth(x, v, t, w, action, p, centre, width, hold, gamma, window, beat):  # type: ignore[no-untyped-def]
    """Discounted worth of one action and then a controller; stops as soon as it cannot exceed `beat`."""
    worth, discount, last = 0.0, 1.0, gamma ** (window + 1)
    fall = 12 * 2 * math.pi / 360
    for _ in range(window):
        x, v, t, w = _cart_pole_step(x, v, t, w, action)
        if abs(x) > 2.4 or abs(t) > fall:
            return worth
        discount *= gamma
        if abs(x - centre) <= width:
            worth += discount
            if not hold:
                return worth
        if worth + ((discount * gamma - last) / (1 - gamma) if hold else discount * gamma) <= beat:
            return worth
        action = _cart_pole_steer(x, v, t, w, centre, p)
    return worth


@numba.njit(cache=True)
def cart_pole_choose(state, controllers, centre, width, hold, gamma, window, out):  # type: ignore[no-untyped-def]
    """The best first action before any controller, for each state `[B, 4]`; the first controller's of equals."""
    for i in range(len(state)):
        x, v, t, w = state[i]
        best = 0.0
        out[i] = _cart_pole_steer(x, v, t, w, centre, controllers[0])
        for k in range(len(controllers)):
            own = _cart_pole_steer(x, v, t, w, centre, controllers[k])
            for a in (own, 1 - own):  # of equals the controller's own: what it does can be learned
                worth = _cart_pole_worth(x, v, t, w, a, controllers[k], centre, width, hold, gamma, window, best)
                if worth > best:
                    best, out[i] = worth, a
