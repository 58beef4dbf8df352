"""Table 1: the numbers of parameters, compared with the paper's."""

from experiments import table1


def test_table_1_counts_the_parameters_of_the_modules():
  lines = table1.table().splitlines()
  cells = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines}
  dcgan = [int(cells["DCGAN"][i].replace(",", "")) for i in (0, 2)]
  assert all(abs(count - 17e6) < 0.5e6 for count in dcgan)
  steingan = [int(cells["SteinGAN"][i].replace(",", "")) for i in (0, 2)]
  assert steingan[0] < 10e6
  assert abs(steingan[1] - 2.5e6) < 0.5e6
