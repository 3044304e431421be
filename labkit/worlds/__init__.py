"""Small worlds with known truth, in which a method can be seen whole.

| module   | world                                                                  | lessons |
|----------|------------------------------------------------------------------------|---------|
| ring     | eight modes in the plane with a known density                          | 03      |
| toy      | the same ring, a small diffusion model of it, and a judge              | 05      |
| products | photographed parts, good or defective, with their tolerances           | 07      |
"""
