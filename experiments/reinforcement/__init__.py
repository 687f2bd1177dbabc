"""Proximal policy optimization on the environments of gymnax: `python -m experiments ppo`.

options.py   what can be asked
tasks.py     the environments, and how long is learned in each
policy.py    actor and critic; what is drawn from the actor's outputs
ppo.py       one program: acting, advantages, epochs of minibatches; over rates and seeds at once
study.py     a screen of all rates, then twelve seeds at the best one
tables.py    what came of it
figures.py   learning curves and rates
"""
