// @ts-check
// Pure mathematics of the figures. tests/unit/report/test_math.py compares it with exact/ and losses/.
"use strict";

const M = (() => {
  const sigmoid = (/** @type {number} */ z) => (z >= 0 ? 1 / (1 + Math.exp(-z)) : Math.exp(z) / (1 + Math.exp(z)));
  /** -log sigmoid(z) @param {number} z */
  const nls = (z) => (z > 0 ? Math.log1p(Math.exp(-z)) : Math.log1p(Math.exp(z)) - z);
  const relu = (/** @type {number} */ x) => Math.max(0, x);
  /** Bradley-Terry cross-entropy of a label p. @param {number} z @param {number} p */
  const bce = (z, p) => p * nls(z) + (1 - p) * nls(-z);
  /** exp(x), above 40 its tangent: as losses/pairwise.py. @param {number} x */
  const softExp = (x) => Math.exp(Math.min(x, 40)) * (1 + relu(x - 40));

  /** @param {number[]} a */
  function lse(a) {
    const m = Math.max(...a);
    return m + Math.log(a.reduce((sum, x) => sum + Math.exp(x - m), 0));
  }

  /** Expected reward and KL of a distribution. @param {number[]} logPi @param {number[]} logRef @param {number[]} reward */
  function value(logPi, logRef, reward) {
    let mean = 0, kl = 0;
    logPi.forEach((l, i) => {
      const p = Math.exp(l);
      mean += p * reward[i];
      if (p > 0) kl += p * (l - logRef[i]);
    });
    return { reward: mean, kl };
  }

  /** The optimal policy, as exact/optimum.py. @param {number[]} logRef @param {number[]} reward @param {number} beta */
  function tilt(logRef, reward, beta) {
    const joint = logRef.map((l, i) => l + reward[i] / beta);
    const logZ = lse(joint);
    const logPi = joint.map((j) => j - logZ);
    return { pi: logPi.map(Math.exp), logZ, ...value(logPi, logRef, reward) };
  }

  /**
   * Losses of one pair, as losses/pairwise.py: w and l are the log-ratios of chosen and rejected, p is the label.
   * Only losses that are functions of these two; with `average`, w and l are per token.
   * @type {Record<string, (w: number, l: number, o: LossOptions) => number>}
   */
  const losses = {
    sigmoid: (w, l, o) => bce(o.beta * (w - l), smoothed(o)),
    sigmoid_norm: (w, l, o) => bce(o.beta * (w - l), o.p),
    robust: (w, l, o) => {
      const z = o.beta * (w - l), e = o.label_smoothing ?? 0.1;
      return ((1 - e) * nls(z) - e * nls(-z)) / (1 - 2 * e);
    },
    ipo: (w, l, o) => o.p * (w - l - 0.5 / o.beta) ** 2 + (1 - o.p) * (w - l + 0.5 / o.beta) ** 2,
    hinge: (w, l, o) => o.p * relu(1 - o.beta * (w - l)) + (1 - o.p) * relu(1 + o.beta * (w - l)),
    exo_pair: (w, l, o) => {
      const z = o.beta * (w - l), e = o.label_smoothing ?? 1e-3;
      return sigmoid(z) * (-nls(z) - Math.log1p(-e)) + sigmoid(-z) * (-nls(-z) - Math.log(e));
    },
    nca_pair: (w, l, o) => nls(o.beta * w) + 0.5 * nls(-o.beta * w) + 0.5 * nls(-o.beta * l),
    sppo: (w, l, o) => (w - (o.p - 0.5) / o.beta) ** 2 + (l + (o.p - 0.5) / o.beta) ** 2,
    apo_zero: (w, l, o) => sigmoid(-o.beta * w) + sigmoid(o.beta * l),
    apo_down: (w, l, o) => sigmoid(o.beta * w) + sigmoid(-o.beta * (w - l)),
    discopop: (w, l, o) => {
      const z = o.beta * (w - l), tau = o.tau ?? 0.05;
      return sigmoid(-z / tau) * nls(z) + Math.exp(-nls(z / tau) - z);
    },
    forward_kl: (w, l, o) => nls(o.beta * (softExp(-l) - softExp(-w))),
    jensen_shannon: (w, l, o) => nls(o.beta * (nls(l) - nls(w))),
    alpha_divergence: (w, l, o) => {
      const a = o.alpha ?? 0.5;
      return nls((o.beta * (softExp(-a * l) - softExp(-a * w))) / a);
    },
    dpop: (w, l, o) => nls(o.beta * (w - l - (o.penalty ?? 50) * relu(-w))),
    cal_dpo: (w, l, o) =>
      nls(w - l) + (o.calibration ?? 1) * ((w - 0.5 / o.beta) ** 2 + (l + 0.5 / o.beta) ** 2),
  };
  const smoothed = (/** @type {LossOptions} */ o) => {
    const e = o.label_smoothing ?? 0;
    return o.p * (1 - e) + (1 - o.p) * e;
  };
  /** Losses that take the label of a pair as a probability. */
  const soft = ["sigmoid", "sigmoid_norm", "ipo", "hinge", "sppo"];

  /**
   * How hard one pair pushes its margin up: -d loss / d(beta h), as a function of the margin z = beta h.
   * Losses that are not functions of the margin have none.
   * @type {Record<string, (z: number, o: LossOptions) => number>}
   */
  const push = {
    sigmoid: (z, o) => smoothed(o) - sigmoid(z),
    sigmoid_norm: (z, o) => o.p - sigmoid(z),
    robust: (z, o) => {
      const e = o.label_smoothing ?? 0.1;
      return ((1 - e) * sigmoid(-z) + e * sigmoid(z)) / (1 - 2 * e);
    },
    ipo: (z, o) => ((2 * o.p - 1) / o.beta - (2 * z) / o.beta) / o.beta,
    hinge: (z, o) => o.p * (z < 1 ? 1 : 0) - (1 - o.p) * (z > -1 ? 1 : 0),
    exo_pair: (z, o) => {
      const e = o.label_smoothing ?? 1e-3;
      return -sigmoid(z) * sigmoid(-z) * (z - Math.log1p(-e) + Math.log(e));
    },
  };

  /**
   * The polygons of a grid where f >= level, linear along edges, as an SVG path.
   * @param {number[][]} f @param {number} level @param {(i: number) => number} X @param {(j: number) => number} Y
   */
  function region(f, level, X, Y) {
    let d = "";
    const n = f.length - 1;
    for (let j = 0; j < n; j++) {
      for (let i = 0; i < n; i++) {
        const corner = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
        const v = corner.map(([a, b]) => f[b][a] - level);
        if (v.every((x) => x < 0)) continue;
        if (v.every((x) => x >= 0)) {
          let k = i;
          while (k + 1 < n && f[j][k + 2] >= level && f[j + 1][k + 2] >= level) k++;
          d += `M${X(i)} ${Y(j)}H${X(k + 1)}V${Y(j + 1)}H${X(i)}Z`;
          i = k;
          continue;
        }
        const points = [];
        for (let k = 0; k < 4; k++) {
          const a = v[k], b = v[(k + 1) % 4], A = corner[k], B = corner[(k + 1) % 4];
          if (a >= 0) points.push(A);
          if (a >= 0 !== b >= 0) {
            const t = a / (a - b);
            points.push([A[0] + t * (B[0] - A[0]), A[1] + t * (B[1] - A[1])]);
          }
        }
        d += "M" + points.map(([a, b]) => `${X(a).toFixed(1)} ${Y(b).toFixed(1)}`).join("L") + "Z";
      }
    }
    return d;
  }

  /**
   * About `number` round numbers from `low` to `high`, all inside. @param {number} low @param {number} high
   * @param {number} [number]
   */
  function ticks(low, high, number = 5) {
    if (!(high > low)) return [low];
    const rough = (high - low) / number, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough * (1 - 1e-9)) || rough;
    const result = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) result.push(k * step);
    return result;
  }

  /** The Wilson 95 % interval of a share. @param {number} share @param {number} n @returns {[number, number]} */
  function wilson(share, n) {
    if (!n) return [0, 1];
    const z = 1.959964, centre = share + (z * z) / (2 * n), width = z * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
    return [(centre - width) / (1 + (z * z) / n), (centre + width) / (1 + (z * z) / n)];
  }

  /** Centred mean over a window that is cut at both ends. @param {number[]} y @param {number} half */
  function smooth(y, half) {
    return y.map((_, i) => {
      const part = y.slice(Math.max(0, i - half), i + half + 1);
      return part.reduce((a, b) => a + b, 0) / part.length;
    });
  }

  return { sigmoid, nls, lse, value, tilt, losses, soft, push, region, ticks, wilson, smooth };
})();
