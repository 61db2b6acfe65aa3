"""The linear-Gaussian toy of Appendix A.4, in which everything has a closed form.

Every element is x0 ~ N(m, v), the adapter is linear, r = a_t x0 + d_t, and so is the denoiser, u_t x + w_t.
All of it is plain numpy, from the definitions of the process alone. Its Eqs. 32-35 are rederived here.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from contextdiff_jax.process.schedule import gather


@dataclass(frozen=True)
class Toy:
    """Tables alpha_bar, k; data's mean and variance; tables of the adapter (a, d) and the denoiser (u, w)."""

    ab: np.ndarray
    k: np.ndarray
    m: float
    v: float
    a: np.ndarray
    d: np.ndarray
    u: np.ndarray = None
    w: np.ndarray = None
    variance: str | np.ndarray = "posterior"

    @property
    def T(self):
        return len(self.ab) - 1

    @property
    def gain(self):
        """Eqs. 32 and 33: x_t = gain x0 + k_t d_t + sqrt(1 - ab_t) eps."""
        return np.sqrt(self.ab) + self.k * self.a

    def with_optimal_denoiser(self):
        """E[x0 | x_t], by conditioning the joint Gaussian of (x0, x_t)."""
        g = self.gain
        u = g * self.v / (g**2 * self.v + 1 - self.ab)
        w = self.m - u * (g * self.m + self.k * self.d)
        return replace(self, u=u, w=w)

    def optimal_loss(self):
        """Eqs. 34 and 35: the least mean squared error at each t; without an adapter gain^2 is ab_t."""
        return self.v * (1 - self.ab) / (self.gain**2 * self.v + 1 - self.ab)

    def b(self, x0, t):
        return self.k[t] * (self.a[t] * x0 + self.d[t])

    def f(self, x, t):
        return self.u[t] * x + self.w[t]

    def reverse_step(self, t):
        """p(x_{t-1} | x_t) = N(slope x_t + intercept, var), Eq. 7; the decoder, t = 1, has beta_1."""
        mean = lambda x: self._posterior_mean(x, self.f(x, t), t)
        ab, prev = self.ab[t], self.ab[t - 1]
        var = 1 - ab / prev
        if not isinstance(self.variance, str):
            var = self.variance[t]
        elif self.variance == "posterior" and t > 1:
            var *= (1 - prev) / (1 - ab)
        return mean(1.0) - mean(0.0), mean(0.0), var

    def _posterior_mean(self, x, x0, t):
        ab, prev = self.ab[t], self.ab[t - 1]
        from_x0 = np.sqrt(prev) * (1 - ab / prev) / (1 - ab)
        from_xt = np.sqrt(ab / prev) * (1 - prev) / (1 - ab)
        return from_x0 * x0 + from_xt * (x - self.b(x0, t)) + self.b(x0, t - 1)

    def model_distribution(self):
        """Mean and variance of the model's x0, by running the reverse kernels from N(0, 1)."""
        mean, var = 0.0, 1.0
        for t in range(self.T, 0, -1):
            slope, intercept, noise = self.reverse_step(t)
            mean, var = slope * mean + intercept, slope**2 * var + noise
        return mean, var

    def bound(self, x0):
        """E_q[log q(x_1..x_T | x0) - log p(x_0..x_T)] in nats, x0 [N], from the two joint Gaussians.

        No KL of single steps appears: the path has its joint covariance, and log p is quadratic.
        """
        T, total = self.T, np.zeros_like(x0)
        # q: L x = c + noise, with unit diagonal L and -sqrt(a_t) below it.
        L, noise = np.eye(T), np.zeros(T)
        for t in range(1, T + 1):
            a_t = self.ab[t] / self.ab[t - 1]
            noise[t - 1] = 1 - a_t
            if t > 1:
                L[t - 1, t - 2] = -np.sqrt(a_t)
        inverse = np.linalg.inv(L)
        cov = inverse @ np.diag(noise) @ inverse.T
        # p: residuals of x_{t-1} - slope x_t - intercept, t = 1..T, and x_T itself.
        R, p_noise, shift = np.zeros((T + 1, T + 1)), np.zeros(T + 1), np.zeros(T + 1)
        for t in range(1, T + 1):
            slope, intercept, var = self.reverse_step(t)
            R[t - 1, t - 1], R[t - 1, t], shift[t - 1], p_noise[t - 1] = 1.0, -slope, -intercept, var
        R[T, T], p_noise[T] = 1.0, 1.0
        for i, value in enumerate(x0):
            c = np.zeros(T)
            for t in range(1, T + 1):
                root = np.sqrt(self.ab[t] / self.ab[t - 1])
                before = value if t == 1 else 0.0
                c[t - 1] = root * before + self.b(value, t) - root * self.b(value, t - 1)
            mean = inverse @ c
            entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov)[1]
            residual = R @ np.append(value, mean) + shift
            spread = np.diag(R[:, 1:] @ cov @ R[:, 1:].T)
            cross_entropy = 0.5 * np.sum((residual**2 + spread) / p_noise + np.log(2 * np.pi * p_noise))
            total[i] = cross_entropy - entropy
        return total


def toy(s, *, m=0.3, v=0.25, a=0.0, d=0.0):
    """The toy on the library's schedule `s`."""
    ones = np.ones(s.num_timesteps + 1)
    return Toy(np.asarray(s.alpha_bar), np.asarray(s.k), m, v, a * ones, d * ones)


def functions(model):
    """f and b of a toy as the library takes them: t a scalar or [B], data of any rank."""
    at = lambda table, t, x: gather(jnp.asarray(table), t, x)
    f = lambda x, t: at(model.u, t, x) * x + at(model.w, t, x)
    b = lambda x0, t: at(model.k, t, x0) * (at(model.a, t, x0) * x0 + at(model.d, t, x0))
    return f, b


def negative_log_density(x, mean, var):
    return 0.5 * ((x - mean) ** 2 / var + np.log(2 * np.pi * var))
