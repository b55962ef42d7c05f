# temporary
def _give(y, out):
    if out is None:
        return y
    out[...] = y
    return out


def max_pool(x, kernel_size, *, stride, padding=0, out=None):
    from mulfree_cupy.autograd import rules

    return _give(rules.max_pool(x, kernel_size=kernel_size, stride=stride, padding=padding)[0], out)


def avg_pool(x, kernel_size, *, stride, padding=0, out=None):
    from mulfree_cupy.autograd import rules

    return _give(rules.avg_pool(x, kernel_size=kernel_size, stride=stride, padding=padding)[0], out)


def global_average_pool(x, *, out=None):
    return _give(x.mean(axis=(2, 3)), out)
